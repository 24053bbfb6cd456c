"""leaderboard.csv, leaderboard.md and the terminal table."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from autoprune.errors import LedgerError
from autoprune.report import leaderboard
from autoprune.report.rows import NUMBERS, complete


def shown(rows: pd.DataFrame, limit: int = 12) -> str:
    console = Console(width=80, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(leaderboard.terminal(rows, limit))
    return console.export_text()


def test_the_csv_has_the_stable_columns_first(rows: pd.DataFrame, tmp_path: Path) -> None:
    leaderboard.write(rows.assign(accuracy=0.5), tmp_path)
    head = (tmp_path / "leaderboard.csv").read_text().splitlines()[0].split(",")
    assert (
        head[:18]
        == (
            "key method seed tokens evaluations params_ratio params_total_ratio flops_ratio kv_ratio bytes_ratio "
            "prefill_ms prefill_ratio decode_ms decode_ratio kl_fitness kl_selection kl_test perplexity_test"
        ).split()
    )
    assert head[-1] == "accuracy"


def test_the_csv_gives_every_float_back_exactly(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.loc[3, "kl_test"] = 0.1 + 0.2
    rows.loc[4, ["decode_ms", "seed"]] = np.nan
    leaderboard.write(rows, tmp_path)
    back = leaderboard.read(tmp_path)
    pd.testing.assert_frame_equal(
        complete(back)[list(NUMBERS)], complete(rows)[list(NUMBERS)], check_exact=True
    )
    assert list(back["key"]) == list(rows["key"])
    assert list(back["plan"]) == list(rows["plan"])


def test_keys_and_names_stay_text(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.loc[1, "key"], rows.loc[2, "key"], rows.loc[1, "method"] = "12345e678901", "000000000012", "None"
    leaderboard.write(rows, tmp_path)
    back = leaderboard.read(tmp_path)
    assert list(back["key"][1:3]) == ["12345e678901", "000000000012"]
    assert back["method"][1] == "None"


def test_counts_are_written_as_whole_numbers(rows: pd.DataFrame, tmp_path: Path) -> None:
    rows.loc[0, "tokens"] = np.nan
    leaderboard.write(rows, tmp_path)
    lines = (tmp_path / "leaderboard.csv").read_text().splitlines()
    assert lines[1].split(",")[1:5] == ["", "0", "", "941"]
    assert lines[2].split(",")[3] == "2000000"


def test_nothing_but_the_two_files_is_left(rows: pd.DataFrame, tmp_path: Path) -> None:
    leaderboard.write(rows, tmp_path)
    leaderboard.write(rows, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.md"]


def test_a_failed_write_keeps_the_old_file(
    rows: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leaderboard.write(rows, tmp_path)
    old = (tmp_path / "leaderboard.csv").read_bytes()

    def half(self: pd.DataFrame, path: Path, **_: object) -> None:
        Path(path).write_text("key,met")
        raise OSError("disk full")

    monkeypatch.setattr(pd.DataFrame, "to_csv", half)
    with pytest.raises(OSError, match="disk full"):
        leaderboard.write(rows, tmp_path)
    assert (tmp_path / "leaderboard.csv").read_bytes() == old
    assert sorted(p.name for p in tmp_path.iterdir()) == ["leaderboard.csv", "leaderboard.md"]


def test_a_missing_leaderboard_is_named(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match=r"no leaderboard\.csv in "):
        leaderboard.read(tmp_path)


@pytest.mark.parametrize(
    "content", [b"", b"a,b\n1,2\n", b"\xff\xfe\x00", b'"key\n1', b"key,key\n1,2,3\n4,5,6,7\n"]
)
def test_a_corrupt_leaderboard_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "leaderboard.csv").write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        leaderboard.read(tmp_path)
    assert "leaderboard.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_words_among_numbers_are_refused(rows: pd.DataFrame, tmp_path: Path) -> None:
    leaderboard.write(rows, tmp_path)
    path = tmp_path / "leaderboard.csv"
    path.write_text(path.read_text().replace(repr(float(rows["kl_test"][3])), "good"))
    with pytest.raises(LedgerError, match="kl_test"):
        leaderboard.read(tmp_path)


def test_markdown_has_every_row_and_no_nan(rows: pd.DataFrame) -> None:
    text = leaderboard.markdown(rows.drop(columns=["decode_ms", "decode_ratio", "decode_low", "decode_high"]))
    assert all(f"`{key}`" in text for key in rows["key"])
    assert "nan" not in text.lower()
    widths = {line.count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {10}


def test_markdown_escapes_pipes(rows: pd.DataFrame) -> None:
    rows.loc[1, "name"] = "front|x"
    assert "front\\|x" in leaderboard.markdown(rows)


def test_the_terminal_table_starts_with_dense_and_falls_in_size(rows: pd.DataFrame) -> None:
    lines = shown(rows).splitlines()[1:]
    assert lines[0].startswith("dense")
    sizes = [float(line.split()[1].rstrip("x")) for line in lines]
    assert sizes == sorted(sizes, reverse=True)


def test_the_terminal_table_shows_uniform_beside_the_front(rows: pd.DataFrame) -> None:
    lines = shown(rows).splitlines()
    assert sum(line.startswith("uniform@") for line in lines) == 6
    assert any("−71 %" in line and "0.898 @0.40" in line for line in lines)


def test_the_terminal_table_spreads_a_limited_front(rows: pd.DataFrame) -> None:
    lines = [line for line in shown(rows, 5).splitlines() if line.startswith("front")]
    assert len(lines) == 5
    front = rows[rows["name"] == "front"]
    assert front["key"].iloc[0] in lines[0]
    assert front["key"].iloc[-1] in lines[-1]


def test_the_terminal_table_fits_eighty_columns(rows: pd.DataFrame) -> None:
    text = shown(rows)
    assert "…" not in text
    assert all(key in text for key in rows["key"][rows["name"] != "front"])


def test_names_are_no_console_markup(rows: pd.DataFrame) -> None:
    rows.loc[1, "name"] = "front[red]x"
    assert "front[red]x" in shown(rows, 40)


def test_rebuilt_ladders_are_named_and_explained(rows: pd.DataFrame, tmp_path: Path) -> None:
    assert leaderboard.REBUILT not in leaderboard.markdown(rows)
    searched = rows["name"] == "front"
    leaderboard.write(rows.assign(ladders=searched.map({True: "12345e678901", False: None})), tmp_path)
    back = leaderboard.read(tmp_path)
    assert set(back[searched]["ladders"]) == {"12345e678901"} and back[~searched]["ladders"].isna().all()
    assert leaderboard.REBUILT in (tmp_path / "leaderboard.md").read_text()
    pd.read_csv(tmp_path / "leaderboard.csv", dtype=str).drop(columns="ladders").to_csv(
        tmp_path / "leaderboard.csv", index=False
    )
    assert leaderboard.read(tmp_path)["ladders"].isna().all(), "tables of before there were such ladders"
