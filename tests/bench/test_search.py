"""A comparison in miniature: two methods, two seeds, and what is kept between two calls."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from autoprune.bench import search
from autoprune.bench.search.methods import Method, parse
from autoprune.bench.search.replay import replayed
from autoprune.bench.search.runs import Case, Searched, Setting, opened, searched
from autoprune.bench.search.scoring import Scoring, scoring_of
from autoprune.errors import LedgerError
from autoprune.run import pipeline

METHODS = (
    "small=nsga2:search.population=8:search.windows=2,evopress:search.windows=[1,1,2]:search.offspring=8"
)
BUDGETS = "2e3,4e3"


def compare(setting: Setting, to: Path, *more: str) -> str:
    """The text of the table."""
    words = ["--model", setting.model, "--data", setting.data, "--work", setting.work, "--to", str(to)]
    words += ["--methods", METHODS, "--targets", "0.6", "--budgets", BUDGETS, "--seeds", "2"]
    search.main([*words, *more, "--settings", *setting.settings])
    return to.read_text().partition("Remade by")[2]


@pytest.fixture(scope="module")
def first(setting: Setting, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison that has run once."""
    to = tmp_path_factory.mktemp("tables") / "x.md"
    compare(setting, to, "--fronts", METHODS, "--front-budgets", "4e3")
    return to


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that are searched from here on."""
    found: list[str] = []

    def spied(cfg: Any, command: str, progress: Any) -> Path:
        found.append(str(cfg.out))
        return original(cfg, command, progress)

    original = pipeline.search_only
    monkeypatch.setattr(pipeline, "search_only", spied)
    return found


def rows(text: str, start: str) -> list[list[str]]:
    """Cells of the lines that begin so."""
    lines = [line for line in text.splitlines() if line.startswith(start)]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_method_has_its_rows(first: Path) -> None:
    text = first.read_text()
    quality = [r for r in rows(text, "| 0.6x") if len(r) == 8]
    names = [name.partition(":")[0] for _, _, name, *_ in quality]
    assert names == ["uniform", "small", "evopress", "small", "evopress"]
    assert all(0 < float(r[4]) < 10 and r[3] in ("", "2") for r in quality)
    assert [r[7] for r in quality if r[2].startswith("evopress")] == ["best", "best"]
    for name in ("x-curves.png", "x-fronts.png"):
        assert first.with_name(name).stat().st_size > 10_000
    volumes = [r for r in rows(text, "| 4,000 |") if len(r) == 8]
    assert len(volumes) == 2 and all(float(r[3]) > 0 for r in volumes)


def test_only_what_is_missing_is_searched(
    setting: Setting, first: Path, begun: list[str], tmp_path: Path
) -> None:
    again = compare(setting, tmp_path / "x.md", "--fronts", METHODS, "--front-budgets", "4e3")
    assert begun == []
    case = Case(parse(METHODS, 32)[1], 0.6, 4000, 1)
    shutil.rmtree(case.folder(setting))
    fresh = compare(setting, tmp_path / "x.md", "--fronts", METHODS, "--front-budgets", "4e3")
    assert begun == [str(case.folder(setting))]
    cut = "What the runs took"  # times differ
    assert fresh.partition(cut)[0] == again.partition(cut)[0] == first.read_text().partition("Remade by")[2].replace(
        str(first), str(tmp_path / "x.md")
    ).partition(cut)[0]  # fmt: skip


def test_an_interrupted_run_goes_on(setting: Setting, first: Path, begun: list[str]) -> None:
    case = Case(parse(METHODS, 32)[1], 0.6, 4000, 0)
    folder = case.folder(setting)
    with opened(folder) as ledger:
        before = ledger.ordered()
    with closing(sqlite3.connect(folder / "ledger.sqlite")) as db:
        db.execute("DELETE FROM events WHERE kind IN ('searched', 'phase')")
        db.execute("DELETE FROM results WHERE id > 20")
        db.execute("DELETE FROM blobs WHERE id > 20")
        db.commit()
    searched(setting, case)
    with opened(folder) as ledger:
        assert begun == [str(folder)] and ledger.ordered() == before


@pytest.mark.parametrize("method", parse(f"{METHODS},auto:search.candidates=4,random:search.windows=2", 32))
def test_a_reading_is_what_a_shorter_run_comes_to(setting: Setting, first: Path, method: Method) -> None:
    case, tokens = Case(method, 0.6, 4000, 0), 2200
    whole, short = searched(setting, case), searched(setting, replace(case, tokens=tokens))
    assert 0 < len(short.frame) < len(whole.frame)
    pd.testing.assert_frame_equal(whole.at(tokens).reset_index(drop=True), short.frame)
    with opened(case.folder(setting)) as ledger:
        named = replayed(scoring_of(setting).driver(case.overrides(setting)), ledger, [tokens, 4000])
    assert named == {tokens: short.named, 4000: whole.named}
    assert bool(short.named) == (method.search in ("evopress", "auto"))


def test_a_reading_cuts_as_the_study_does() -> None:
    frame = pd.DataFrame(
        {"phase": 0, "batch": [0, 0, 1, 1, 1, 2], "tokens": [32, 32, 64, 0, 32, 0], "id": range(6)}
    )
    found = Searched(frame, (), 0.0, 0.0, 0.0)
    assert [len(found.at(t)) for t in (16, 32, 63, 64, 127, 128, 160, 1000)] == [0, 1, 1, 2, 2, 4, 5, 6]


def test_scores_of_another_model_are_refused(setting: Setting, first: Path) -> None:
    with closing(sqlite3.connect(setting.folder / "scores" / "ledger.sqlite")) as db:
        (kept,) = db.execute("SELECT value FROM meta WHERE key = 'ladders'").fetchone()
        try:
            db.execute("UPDATE meta SET value = 'other' WHERE key = 'ladders'")
            db.commit()
            with pytest.raises(LedgerError, match="ladders is other"):
                Scoring(setting)
        finally:
            db.execute("UPDATE meta SET value = ? WHERE key = 'ladders'", (kept,))
            db.commit()
