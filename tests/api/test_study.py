"""`study oracle`: plans of one size, fitness before and after a recovery that recovers, resumed plan by plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.stats import kendalltau

from autoprune.cli import main
from autoprune.recovery.distill import Distiller
from autoprune.report.correlation import Tau
from autoprune.run.oracle import AFTER, BEFORE, LOW, warning

SMALL = ("window=32", "calibration.tokens=1024", "selection_windows=8", "quiet=true", "recovery.batch=4")
STRONG = ("recovery.learning_rate=3e-3",)


def study(given: Any, to: Path, *words: str, **changed: Any) -> int:
    """The command, with some of it changed."""
    options = {"data": given.text, "to": to, "plans": 4, "steps": 8, "windows": 4, "ratio": "0.5x", **changed}
    named = [f"--{name}={value}" for name, value in options.items()]
    return main(["study", "oracle", str(given.model), *SMALL, *STRONG, *words, *named])


def read(folder: Path) -> pd.DataFrame:
    """A study's table."""
    return pd.read_csv(folder / "oracle.csv", dtype={"key": str})


@pytest.fixture(scope="module")
def done(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study."""
    to = tmp_path_factory.mktemp("study") / "one"
    assert study(given, to) == 0
    return to


def test_every_plan_is_recovered_and_of_one_size(done: Path) -> None:
    table = read(done)
    assert len(set(table["key"])) == 4 and len(set(table[BEFORE])) == 4
    better = table[AFTER] < 0.95 * table[BEFORE]
    assert better.tolist() == (table["step_kept"] == 8).tolist() and better.sum() >= 3, table
    left = f"recovery did not improve {4 - better.sum()} of 4 plans"
    assert (left in (done / "oracle.md").read_text()) is not better.all()
    assert set(table["recovery_tokens"]) == {8 * 4 * 32}
    assert table["params_ratio"].max() <= 0.5 < table["params_ratio"].min() + 0.07
    assert not list(done.glob(".*.recovery"))


def test_tau_is_that_of_the_two_fitness_columns(done: Path, given: Any, tmp_path: Path, capsys: Any) -> None:
    table, report = read(done), (done / "oracle.md").read_text()
    wanted = kendalltau(table[BEFORE], table[AFTER]).statistic
    assert f"Kendall tau {wanted:.2f}, 95 % interval" in report and "(4 plans)" in report
    assert "autoprune study oracle" in report and all(f"`{key}`" in report for key in table["key"])
    turned = Path(shutil.copytree(done, tmp_path / "o"))
    table[AFTER] = 1 - table[BEFORE]
    table.to_csv(turned / "oracle.csv", index=False)
    assert study(given, turned) == 0
    told = capsys.readouterr().out
    assert "Kendall tau -1.00, 95 % interval -1.00 to -1.00" in told
    assert "warning: tau is below 0.3: this fitness says little" in told


def test_more_plans_go_on_where_it_ended(
    done: Path, given: Any, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    before = (done / "oracle.csv").read_text()
    steps: list[int] = []
    real = Distiller._step

    def step(self: Distiller, number: int) -> float:
        steps.append(number)
        return real(self, number)

    monkeypatch.setattr(Distiller, "_step", step)
    assert study(given, done, plans=5) == 0
    assert steps == list(range(8)) and "(5 plans)" in capsys.readouterr().out
    assert (done / "oracle.csv").read_text().startswith(before)
    steps.clear()
    assert study(given, done, plans=4) == 0
    assert steps == [] and "(4 plans)" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done_and_the_end_is_the_same(
    done: Path, given: Any, tmp_path: Path, at_step: Any, capsys: Any
) -> None:
    with at_step(12):
        assert study(given, tmp_path / "o") == 3
    assert "stopped with 1 of 4 plans; the same command goes on" in capsys.readouterr().err
    assert study(given, tmp_path / "o") == 0
    whole = (done / "oracle.csv").read_text().splitlines()[:5]
    assert (tmp_path / "o" / "oracle.csv").read_text().splitlines() == whole


def test_another_study_is_not_mixed_in(done: Path, given: Any, capsys: Any) -> None:
    assert study(given, done, steps=9) == 2
    assert "holds a study with recovery.steps=8, here it is 9; name another folder" in capsys.readouterr().err
    assert json.loads((done / "oracle.json").read_text())["recovery.steps"] == 8


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"steps": 0}, "study oracle needs a recovery of at least one step"),
        ({"plans": 2}, "--plans 2 must be at least 3"),
        ({"windows": 9999}, "--windows 9999 is more than the"),
        ({"ratio": "half"}, "params=half is not a bound; write 0.6x"),
        ({"ratio": "1.0x"}, "4 different plans within params=1.0x were asked for; only 1 were found"),
    ],
)
def test_mistakes(given: Any, tmp_path: Path, capsys: Any, changed: dict[str, Any], line: str) -> None:
    assert study(given, tmp_path / "o", **changed) == 2
    told = capsys.readouterr().err.strip()
    assert line in told and len(told.splitlines()) == 1


def test_a_low_tau_is_warned_of() -> None:
    assert "little about plans after recovery" in str(warning(Tau(LOW - 0.01, 0.0, 0.5, 9)))
    assert "more plans would tell" in str(warning(Tau(0.5, LOW - 0.01, 0.8, 9)))
    assert warning(Tau(0.5, LOW, 0.8, 9)) is None
