"""The report: self-contained, escaped, honest, and whole even when little was measured."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest

from autoprune.report import html
from autoprune.report.canvas import VARIABLES
from autoprune.report.facts import RunFacts

EVIL = "<script>alert(1)</script>\"' onload='x'&$x$"


class Reader(HTMLParser):
    """Collects tags, ids and visible text; complains of unclosed tags."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids += [value or "" for name, value in attrs if name == "id"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text.append(data)


def parse(content: str) -> Reader:
    reader = Reader()
    reader.feed(content)
    assert reader.open == []
    return reader


def page(rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, folder: Path) -> str:
    return html.write(rows, evaluated, facts, folder).read_text()


def unmeasured(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop(columns=[c for c in rows if c.startswith(("prefill", "decode"))])


def test_the_report_is_one_valid_file(
    rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, tmp_path: Path
) -> None:
    content = page(rows, evaluated, facts, tmp_path)
    reader = parse(content)
    assert len(reader.ids) == len(set(reader.ids))
    assert reader.tags.count("svg") == 5
    assert not re.search(r"https?:|//[a-z]|@import|<link|<iframe|\bsrc=", content)
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == [
        *("decode.png", "front.png", "kept.png", "latency.png", "prefill.png")
    ]
    assert content == page(rows, evaluated, facts, tmp_path)


def test_it_says_all_that_a_reader_must_know(
    rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, tmp_path: Path
) -> None:
    text = re.sub(r"\s+", " ", "".join(parse(page(rows, evaluated, facts, tmp_path)).text))
    for said in (
        "0.47x of the block parameters: test KL 0.214, against 0.643",
        "256 windows of 256 tokens",
        "2,000,000",
        "310,000",
        "420,000",
        "1 h 02 min",
        "61,204 of 90,336",
        "test KL 6 % above fitness KL",
        "mean 0.9 %, largest 2.1 %",
        "AMD EPYC",
        facts.data_digest,
        facts.command,
        "--key c594b18e7f2e --to OUT",
    ):
        assert said in text, said
    assert all(key in text for key in rows["key"])
    assert "nan" not in text.lower()


@pytest.mark.parametrize(
    "field", ["model", "data", "method", "machine", "command", "data_digest", "notes", "splits"]
)
def test_a_malicious_value_is_only_text(rows: pd.DataFrame, facts: RunFacts, field: str) -> None:
    value = {"notes": (EVIL,), "splits": {EVIL: EVIL}}.get(field, EVIL)
    content = html.render(rows, [], replace(facts, **{field: value}), Path("runs/a"))  # type: ignore[arg-type]
    reader = parse(content)
    assert reader.tags.count("script") == 1
    assert EVIL in "".join(reader.text)


def test_malicious_rows_and_folders_are_only_text(
    rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, tmp_path: Path
) -> None:
    rows.loc[rows["name"] == "front", "key"] = EVIL
    rows.loc[2, "name"] = f"front{EVIL}"
    content = html.render(rows, html._pictures(rows, evaluated), facts, Path(f"runs/{EVIL}"))
    reader = parse(content)
    assert reader.tags.count("script") == 1
    assert f"front{EVIL}" in "".join(reader.text)


def test_without_latency_it_still_comes_out(
    rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, tmp_path: Path
) -> None:
    content = page(unmeasured(rows), evaluated, replace(facts, latency_error=None), tmp_path)
    text = "".join(parse(content).text)
    assert "Not measured in this run: prefill and decode latency" in text
    assert "nan" not in content.lower()
    assert "faster" not in text
    assert sorted(p.name for p in (tmp_path / "pictures").iterdir()) == ["front.png", "kept.png"]


def test_an_unfinished_run_says_so(rows: pd.DataFrame, facts: RunFacts) -> None:
    begun = rows[rows["name"] == "dense"].drop(columns=["kl_test", "kl_selection", "kl_fitness"])
    text = "".join(parse(html.render(begun, [], replace(facts, finished=False), Path("runs/a"))).text)
    assert "not finished" in text
    assert "autoprune resume runs/a" in text
    assert "autoprune export runs/a --key KEY --to OUT" in text
    assert "not finished" not in "".join(parse(html.render(rows, [], facts, Path("runs/a"))).text)


def test_selection_numbers_are_not_passed_off_as_test(rows: pd.DataFrame, facts: RunFacts) -> None:
    text = "".join(parse(html.render(rows.drop(columns="kl_test"), [], facts, Path("a"))).text)
    assert "has not been scored on the test split" in text
    assert "test KL" not in text


def test_no_speed_is_claimed_where_intervals_overlap(
    rows: pd.DataFrame, evaluated: pd.DataFrame, facts: RunFacts, tmp_path: Path
) -> None:
    for phase in ("prefill", "decode"):
        rows[f"{phase}_high"] = rows[f"{phase}_ms"][0]
    content = page(rows, evaluated, facts, tmp_path)
    assert "faster" not in content
    assert "not told apart from dense" in content


def test_every_colour_is_set_for_light_dark_and_print(rows: pd.DataFrame, facts: RunFacts) -> None:
    content = html.render(rows, [], facts, Path("a"))
    for variable in VARIABLES.values():
        assert content.count(f"{variable}: #") == 3, variable


def test_every_cell_carries_its_exact_value_for_sorting(rows: pd.DataFrame, facts: RunFacts) -> None:
    content = html.render(rows, [], facts, Path("a"))
    for value in rows["params_ratio"]:
        assert f'data-v="{float(value)}"' in content
