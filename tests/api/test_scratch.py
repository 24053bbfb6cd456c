"""`study scratch`: the pruned model, recovered, beside its own architecture trained from random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from autoprune.cli import main
from autoprune.recovery.distill import Distiller
from autoprune.run.scratch_study import fresh, verdict
from tests import tiny

SMALL = ("window=32", "calibration.tokens=1024", "selection_windows=8", "test_windows=8", "quiet=true")
STRONG = ("recovery.learning_rate=3e-3", "recovery.batch=4")


def study(given: Any, to: Path, *words: str, **changed: Any) -> int:
    """The command, with some of it changed."""
    options = {"data": given.text, "to": to, "steps": 8, "seeds": 2, "plan": "uniform@0.6", **changed}
    named = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    return main(["study", "scratch", str(given.model), *SMALL, *STRONG, *words, *named])


@pytest.fixture(scope="module")
def done(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study."""
    to = tmp_path_factory.mktemp("scratch") / "one"
    assert study(given, to, search_tokens=2000) == 0
    return to


def read(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "scratch.csv")


def test_every_model_is_trained_and_scored(done: Path) -> None:
    table = read(done)
    assert table["model"].tolist() == ["pruned", "pruned, recovered", *["scratch-E", "scratch-B"] * 2]
    steps = table.set_index("model")["steps"]
    assert steps["pruned"] == 0 and steps["pruned, recovered"] == 8 and set(steps["scratch-E"]) == {8}
    assert (steps["scratch-B"] > 8).all()
    assert table["tokens"].tolist() == (table["steps"] * 4 * 32).tolist()
    assert table["kl_test"].nunique() == len(table), "seeds and steps must matter"


def test_the_recovered_weights_beat_random_ones_trained_as_long(done: Path) -> None:
    kl = read(done).groupby("model")["kl_test"].mean()
    assert kl["pruned, recovered"] < kl["pruned"] and kl["pruned, recovered"] < kl["scratch-E"]
    assert "The pruned weights are worth keeping" in (done / "scratch.md").read_text()


def test_the_verdict_turns_with_the_figures(done: Path) -> None:
    table = read(done)
    table.loc[table["model"] == "scratch-B", "kl_test"] = 1e-3
    assert verdict(table).startswith("warning: the pruned weights are not worth keeping: scratch-B")


def test_the_same_command_trains_nothing_again(
    done: Path, given: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (done / "scratch.csv").read_text()
    monkeypatch.setattr(Distiller, "_step", lambda *_: pytest.fail("trained again"))
    assert study(given, done, search_tokens=2000) == 0
    assert (done / "scratch.csv").read_text() == before


def test_ctrl_c_keeps_what_is_done(given: Any, done: Path, tmp_path: Path, at_step: Any, capsys: Any) -> None:
    with at_step(12):
        assert study(given, tmp_path / "o", search_tokens=2000) == 3
    assert "stopped before scratch-E; the same command goes on" in capsys.readouterr().err
    assert study(given, tmp_path / "o", search_tokens=2000) == 0
    assert (tmp_path / "o" / "scratch.csv").read_text() == (done / "scratch.csv").read_text()


def test_fresh_weights_follow_the_seed_and_leave_the_global_state_alone() -> None:
    model, state = tiny.llama(), torch.get_rng_state()
    one, same, other = (fresh(model, seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])
    assert not torch.equal(one[name], model.state_dict()[name])


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"steps": 0}, "study scratch needs a recovery of at least one step"),
        ({"seeds": 0}, "--seeds 0 must be at least 1"),
        ({"search_tokens": "nan"}, "--search-tokens nan must be a finite number"),
        ({"plan": "dense"}, "--plan=dense is no pruned model"),
        ({"plan": "nowhere"}, "--plan=nowhere is neither dense, nor a baseline@RATIO"),
    ],
)
def test_mistakes_are_one_line(changed: Any, line: str, given: Any, tmp_path: Path, capsys: Any) -> None:
    assert study(given, tmp_path / "o", **changed) == 2
    told = capsys.readouterr().err
    assert line in told and told.count("\n") == 1
