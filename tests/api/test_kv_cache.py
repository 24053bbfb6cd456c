"""Runs that search KV caches, from settings to a checkpoint that decodes with less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import autoprune
from autoprune.front import Front
from autoprune.kv_policy import Streaming, policy_of
from autoprune.space import Plan

POLICIES = {
    "window": ("space=[structured,kv_cache]",),
    "streaming": ("space=[kv_cache]", "space.kv_cache.sink=1", "space.kv_cache.recent=3"),
}


@pytest.fixture(scope="module", params=POLICIES)
def run(request: Any, given: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Front, Path]:
    """A finished run without latencies."""
    out = tmp_path_factory.mktemp("kv") / request.param
    bound = "0.4x" if request.param == "window" else "0.7x"
    chosen = (*POLICIES[request.param], f"space.kv_cache.policy={request.param}", "latency.mode=off")
    found = given.search(
        out, *chosen, f"constraints.kv_bytes={bound}", "window=48", objectives=["kl", "kv_bytes"]
    )
    return request.param, found, out


def test_the_front_is_within_the_bound_and_best_decodes_with_it(run: tuple[str, Front, Path]) -> None:
    policy, _, out = run
    rows = pd.read_csv(out / "leaderboard.csv")
    front = rows[rows["name"] == "front"]
    assert len(front) and (front["kv_ratio"] <= (0.4 if policy == "window" else 0.7) + 1e-9).all()
    assert (front["kl_test"] > 1e-6).all() and float(rows["kl_test"].iloc[0]) < 1e-5
    plan = Plan.from_json((out / "best" / "autoprune_plan.json").read_text())
    kept = {
        i: policy_of(plan.at(i, "attention")) for i in range(plan.blocks) if not plan.at(i, "attention").gone
    }
    found = autoprune.load(out / "best").config.cuts()
    assert {i: p.name for i, p in kept.items() if p} == {i: s["policy"] for i, s in found.items()}
    assert any(kept.values()) and (
        policy != "streaming" or any(isinstance(p, Streaming) for p in kept.values())
    )
    assert "| kv |" in (out / "leaderboard.md").read_text()
