"""Runs that search query heads inside KV groups, from settings to a checkpoint with fewer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autoprune
from autoprune.cli import main
from autoprune.space import Plan
from tests import tiny


@pytest.fixture(scope="module")
def run(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Heads alone, without latencies."""
    out: Path = tmp_path_factory.mktemp("heads") / "run"
    given.search(out, "space=[heads]", "latency.mode=off", "constraints.params=0.95x")
    return out


def test_best_has_as_many_heads_as_its_plan_says(run: Path) -> None:
    plan = Plan.from_json((run / "best" / "autoprune_plan.json").read_text())
    heads = [int(plan.at(b, "attention").get("group_heads")) for b in range(plan.blocks)]
    assert 1 in heads and set(heads) <= {1, 2}
    model = autoprune.load(run / "best")
    found = [layer.self_attn.q_proj.out_features // tiny.HEAD_DIM for layer in model.model.layers]
    assert found == [tiny.GROUPS * count for count in heads]
    assert {layer.self_attn.k_proj.out_features for layer in model.model.layers} == {
        tiny.GROUPS * tiny.HEAD_DIM
    }


def test_the_front_is_within_the_bound_and_whole_groups_are_not_solved_again(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = pd.read_csv(run / "leaderboard.csv")
    front = rows[rows["name"] == "front"]
    assert len(front) and (front["params_ratio"] <= 0.95 + 1e-9).all() and (front["kv_ratio"] == 1.0).all()
    key = str(front["key"].iloc[0])
    assert main(["export", str(run), "--key", key, "--to", str(tmp_path / "a"), "--refit"]) == 2
    assert "--refit solves whole KV groups" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["space=[heads]", "space.heads.options=[]"],
            "space.heads.options=[] must be whole numbers that rise",
        ),
        (["space=[heads]", "space.heads.options=[2]"], "a KV group of this model keeps 1 to 1 query heads"),
        (["space=[heads,sparsity]"], "that space=[sparsity] ranks whole; leave one out"),
        (["space=[structured,heads]", "export.refit=true"], "export.refit=true solves whole KV groups"),
    ],
)
def test_mistakes_are_one_line(
    given: Any, tmp_path: Path, settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given.line(tmp_path / "run", *settings)) == 2
    told = capsys.readouterr().err.strip()
    assert said in told and "\n" not in told
