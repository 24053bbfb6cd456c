"""Plans at a bound, refit for themselves, in miniature: what is chosen by what, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from autoprune.bench import rounds, small
from autoprune.errors import SettingError

SEARCH = "search=evopress:search.windows=[1,1,2]:search.offspring=8"


def table(folder: Path, *more: str) -> list[list[str]]:
    """Cells of the table's rows."""
    words = [
        "--model",
        str(folder / "model"),
        "--data",
        str(folder / "text.txt"),
        "--work",
        str(folder / "work"),
    ]
    words += [
        "--tokens",
        "3000",
        "--calibration",
        "512",
        "--ratio",
        "0.6",
        "--finalists",
        "2",
        "--seeds",
        "2",
    ]
    words += [
        "--to",
        str(folder / "x.md"),
        "--settings",
        "window=32",
        "selection_windows=6",
        "test_windows=8",
    ]
    rounds.main([*words, "--variants", f"one:{SEARCH}", f"two:{SEARCH}:calibration.rounds=[1,1]", *more])
    lines = [line for line in (folder / "x.md").read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_rows_are_refit_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small.make(tmp_path)
    head, *rows = table(tmp_path)
    assert [row[0] for row in rows] == ["one", "two"] and len(head) == len(rows[0])
    assert [row[2] for row in rows] == ["2", "2"]
    for row in rows:
        assert float(row[3].removesuffix("x")) <= 0.6
        assert float(row[6]) <= float(row[4]), "the refit is kept only where selection says so"
    assert rows[0][4:] != rows[1][4:], "the ladders of the second round are others"

    def never(*_: Any) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(rounds, "_measured", never)
    assert table(tmp_path)[1:] == rows


def test_a_variant_is_a_name_and_settings() -> None:
    with pytest.raises(SettingError, match="--variants: 'auto' in 'x:auto' is not of the form KEY=VALUE"):
        rounds.main(["--variants", "x:auto"])
