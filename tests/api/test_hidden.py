"""Runs on a narrower residual stream, from the setting to a checkpoint of that width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autoprune
from autoprune.cli import main
from tests import tiny


def searched(given: Any, out: Path, *settings: str) -> pd.DataFrame:
    """The leaderboard of a small run without latencies."""
    given.search(out, "latency.mode=off", *settings)
    return pd.read_csv(out / "leaderboard.csv")


@pytest.fixture(scope="module")
def run(given: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pd.DataFrame]:
    """Of three quarters of the width, and sizes within 0.6 of the model as given."""
    out = tmp_path_factory.mktemp("hidden") / "run"
    return out, searched(given, out, "hidden=0.75x", "constraints.params=0.6x")


def test_ratios_and_kl_are_to_the_model_as_given(run: tuple[Path, pd.DataFrame]) -> None:
    out, rows = run
    base, front = rows[rows["name"] == "dense"].iloc[0], rows[rows["name"] == "front"]
    assert 0.7 < base["params_ratio"] < 0.8 and base["kl_test"] > 1e-3
    assert len(front) and (front["params_ratio"] <= 0.6 + 1e-9).all()
    assert "The hidden width was cut before the search" in (out / "leaderboard.md").read_text()
    assert "All plans have 24 of 32 hidden dimensions" in (out / "report.html").read_text()


def test_best_is_a_checkpoint_of_that_width(run: tuple[Path, pd.DataFrame], tmp_path: Path) -> None:
    out, rows = run
    model = autoprune.load(out / "best")
    assert model.config.hidden_size == 24 and model.get_input_embeddings().weight.shape[1] == 24
    front = rows[rows["name"] == "front"]
    assert (
        main(["export", str(out), "--key", str(front["key"].iloc[0]), "--to", str(tmp_path / "again")]) == 0
    )


def test_the_whole_width_has_no_kl(given: Any, tmp_path: Path) -> None:
    rows = searched(given, tmp_path / "run", "hidden=1x", "tokens=3000")
    base = rows[rows["name"] == "dense"].iloc[0]
    assert "hidden width was cut" not in (tmp_path / "run" / "leaderboard.md").read_text()
    assert abs(base["kl_test"]) < 1e-5 and base["params_ratio"] == 1.0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("hidden=1.5x",), "hidden=1.5x must be a share of the hidden size"),
        (("hidden=30",), "or a multiple of 4"),
        (("hidden=0.75x", "recovery=distill"), "recovery.hidden=16 compares hidden states"),
        (
            ("hidden=0.75x", "stream=disk"),
            "hidden=0.75x makes a model in memory; it does not go with stream=disk",
        ),
    ],
)
def test_mistakes_are_one_line(
    given: Any, tmp_path: Path, settings: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given.line(tmp_path / "run", *settings)) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told


def test_other_families_are_refused(given: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.families import FAMILIES

    family = FAMILIES["gpt2"]
    model = family.make(next(iter(family.variants)), vocab_size=256)
    line = given.line(tmp_path / "run", "hidden=0.9x")
    line[0] = f"model={tiny.save(model, tmp_path / 'model')}"
    assert main(line) == 2
    assert "'gpt2' cannot be rotated; supported: llama, mistral, qwen2, qwen3" in capsys.readouterr().err
