"""Rows in a work folder, and the tables that benchmarks make of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.bench import allocators, criteria, eep, targets, work
from autoprune.bench.work import Work


def test_a_row_is_measured_once_and_other_settings_are_other_rows(tmp_path: Path) -> None:
    asked: list[int] = []

    def measure() -> dict[str, float]:
        asked.append(len(asked))
        return {"0.5": float(len(asked))}

    for settings in ([1, 2], [1, 2], [1, 3]):
        row = Work(tmp_path, "models/small", settings).row("0-weights-wanda", measure)
        assert row == {"0.5": 2.0 if settings == [1, 3] else 1.0}
    assert len(asked) == 2 and len(list(tmp_path.glob("small-*/*.json"))) == 2


def test_another_version_makes_all_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table must not tell as ours what an older one has searched."""
    before = work.work_folder(tmp_path, "m", 1)
    assert work.work_folder(tmp_path, "m", 1) == before != work.work_folder(tmp_path, "other/m", 1)
    monkeypatch.setattr(work, "__version__", "0.0.0")
    assert work.work_folder(tmp_path, "m", 1) != before


def test_other_tokens_are_other_targets(tmp_path: Path) -> None:
    """Searches of another length, or under other settings, are not read."""
    words = ["--work", str(tmp_path)]
    folders = {
        targets._folder(targets._parse([*words, *more]))
        for more in ([], ["--tokens", "1e5"], ["--set", "seed=1"], ["--rounds", "5"])
    }
    assert len(folders) == 3, "rounds only measure"


def test_a_row_that_fails_is_measured_again(tmp_path: Path) -> None:
    rows = Work(tmp_path, "m", None)
    with pytest.raises(RuntimeError):
        rows.row("x", _fails)
    assert rows.row("x", lambda: {"a": 1.0}) == {"a": 1.0}


def _fails() -> dict[str, float]:
    raise RuntimeError


def test_criteria_stand_in_lines_with_their_spread() -> None:
    found = {
        ("weights", "wanda"): [{"0.8": 0.1, "2:4": 0.3}, {"0.8": 0.2, "2:4": 0.5}],
        ("weights", "random"): [{"0.8": 1.0}],
        ("units", "obs"): [{"0.8": 9.0}],
    }
    lines = criteria._table(found, "weights").splitlines()
    assert lines[0] == "| weights | 0.8 | 2:4 |" and lines[3] == "| random | 1.0000 |  |"
    assert lines[2] == "| wanda | 0.1500 ± 0.0707 | 0.4000 ± 0.1414 |" and len(lines) == 4


def test_allocators_are_compared_with_uniform_of_the_same_seed() -> None:
    found = {
        ("structured", "0.5", "owl"): [0.1, 0.4],
        ("structured", "0.5", "uniform"): [0.2, 0.4],
        ("structured", "0.7", "uniform"): [0.1, 0.1],
    }
    lines = allocators._table(found).splitlines()[2:]
    assert [line.split(" | ")[1:3] for line in lines] == [
        ["0.7x", "uniform"],
        ["0.5x", "uniform"],
        ["0.5x", "owl"],
    ]
    assert lines[2].endswith("| 0.2500 | 0.2121 | 0.750 |")


def test_a_phase_is_compared_with_the_line_it_goes_on_from() -> None:
    names, rows = ("ladder", "random", "selected", "merged"), []
    for kls in ((1.0, 2.0, 0.5, 0.4), (1.0, 1.0, 0.5, 0.6)):
        of = list(zip(names, kls, strict=True))
        row = {f"{name}_{split}": kl for name, kl in of for split in ("fitness", "test")}
        rows.append(row | {f"{name}_evaluations": 8.0 for name in names})
    lines = eep._table(rows).splitlines()[2:]
    assert lines[0].endswith("| 1.0000 | 0.0000 |  |  |  |")
    assert lines[2].endswith("| random | 2 of 2 | 62.5% |")
    assert lines[3].endswith("| selected | 1 of 2 | 0.0% |")
