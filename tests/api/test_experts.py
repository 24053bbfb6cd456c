"""Experts searched per block go the whole way: search, front, a checkpoint whose blocks differ in their number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.errors import SettingError
from autoprune.export.checkpoint import PLAN_FILE
from autoprune.space import Plan
from tests import tiny
from tests.families import EXPERTS, FAMILIES, USED


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = FAMILIES["qwen2_moe"].make("untied", vocab_size=tiny.VOCABULARY)
    return tiny.save(model, tmp_path_factory.mktemp("moe") / "model")


def test_a_search_ends_with_a_front_and_a_checkpoint(given: Any, folder: Path, tmp_path: Path) -> None:
    front = given.search(
        tmp_path / "run",
        "latency.mode=off",
        "calibration.criterion=activation",
        "uniform=[0.6]",
        model=folder,
        tokens=4000,
        space=["structured", "experts"],
        constraints={"expert_bytes": "0.5x"},
    )
    frame = front.frame()
    dense = frame[frame["name"] == "dense"].iloc[0]
    assert abs(dense["kl_test"]) < 1e-5 and dense["params_ratio"] == dense["expert_ratio"] == 1
    assert (frame[frame["name"] == "front"]["expert_ratio"] <= 0.5).all()
    plan = Plan.from_json((front.folder / "best" / PLAN_FILE).read_text())
    kept = [dict(plan.at(b, "ffn").settings) for b in range(plan.blocks)]
    whole = EXPERTS * max(json.loads(dense["plan"])["blocks"][0]["ffn"]["width"], 1)
    assert sum(s["experts"] * s["width"] for s in kept) <= 0.5 * 3 * whole
    model = autoprune.load(front.folder / "best")
    held = [0 if b.mlp is None else b.mlp.gate.weight.shape[0] for b in model.model.layers]
    assert held == [s["experts"] for s in kept]
    assert all(s["experts_per_token"] <= min(USED, s["experts"]) for s in kept)


def test_stun_is_a_row_and_a_checkpoint_with_thinned_experts(
    given: Any, folder: Path, tmp_path: Path
) -> None:
    front = given.search(
        tmp_path / "run",
        *("latency.mode=off", "calibration.criterion=activation", "calibration.mask=wanda"),
        *("calibration.expert_criterion=clusters", "baselines=[uniform,stun]", "uniform=[0.5]"),
        model=folder,
        tokens=4000,
        search="random",
        space=["experts", "sparsity"],
    )
    frame = front.frame()
    row = frame[frame["name"] == "stun@0.5"].iloc[0]
    assert 0.4 < row["params_ratio"] <= 0.5
    to = autoprune.export(front.folder, key="stun@0.5", to=tmp_path / "stun")
    plan = Plan.from_json((Path(to) / PLAN_FILE).read_text())
    kept = [dict(plan.at(b, "ffn").settings) for b in range(plan.blocks)]
    assert (
        min(int(s["experts"]) for s in kept) < EXPERTS and min(int(s["up.unstructured"]) for s in kept) < 100
    )
    model = autoprune.load(to)
    for block, settings in zip(model.model.layers, kept, strict=True):
        for expert in block.mlp.experts.down_proj:
            share = settings["down.unstructured"] / 100
            assert float((expert != 0).float().mean()) == pytest.approx(share, abs=0.01)


def test_a_model_without_experts_is_refused_in_one_line(given: Any, tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match="space=experts needs a model with experts; the family 'llama' has none"
    ):
        given.search(tmp_path / "run", space="experts")
