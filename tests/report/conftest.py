"""A believable run: 12 blocks, 3 KV groups, FFN options 0..512, 20 front points, five uniform baselines."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from autoprune.report.facts import RunFacts
from autoprune.space import Plan

BLOCKS, GROUPS, WIDTHS = 12, 3, tuple(range(0, 513, 64))
PER_GROUP, PER_NEURON = 256 * 64 * 2 * 4, 256 * 3
FULL = BLOCKS * (GROUPS * PER_GROUP + WIDTHS[-1] * PER_NEURON)


def ratio(widths: list[tuple[int, int]]) -> float:
    """Block parameters, to dense."""
    return sum(g * PER_GROUP + w * PER_NEURON for g, w in widths) / FULL


def shrink(target: float, rng: np.random.Generator) -> list[tuple[int, int]]:
    """Random halvings, middle blocks first, until the plan is at most `target` of dense."""
    widths = [[GROUPS, WIDTHS[-1]] for _ in range(BLOCKS)]
    weight = np.array([0.4, 0.7, 1, 1.3, 1.6, 1.8, 1.8, 1.6, 1.3, 1, 0.8, 0.5])
    while ratio([(g, w) for g, w in widths]) > target:
        block = int(rng.choice(BLOCKS, p=weight / weight.sum()))
        which = int(rng.random() < 0.75)
        widths[block][which] = max(0, widths[block][which] - (1, 64)[which])
    return [(g, w) for g, w in widths]


def record(
    name: str, widths: list[tuple[int, int]], strength: float, rng: np.random.Generator
) -> dict[str, object]:
    """One row with all that is measured."""
    size, plan = ratio(widths), Plan.of(widths)
    kl = 0.0 if name == "dense" else strength * 2.8 * (1 - size) ** 2.2 * float(np.exp(0.03 * rng.normal()))
    row: dict[str, object] = {"name": name, "key": plan.key, "plan": plan.to_json()}
    row |= {"method": "path" if name == "front" else "", "seed": 0, "tokens": 2_000_000, "evaluations": 941}
    row |= {"params_ratio": size, "params_total_ratio": 0.25 + 0.75 * size, "flops_ratio": 0.2 + 0.8 * size}
    row |= {"kv_ratio": sum(g for g, _ in widths) / (BLOCKS * GROUPS), "bytes_ratio": 0.25 + 0.75 * size}
    for phase, full, slope in (("prefill", 21.4, 0.85), ("decode", 1.62, 0.7)):
        predicted = full * (1 - slope + slope * size)
        ms = predicted * float(np.exp(0.012 * rng.normal())) if name != "dense" else full
        row |= {f"{phase}_ms": ms, f"{phase}_low": ms * 0.985, f"{phase}_high": ms * 1.02}
        row |= {f"{phase}_ratio": ms / full, f"{phase}_pred_ms": predicted}
    row |= {"kl_fitness": kl * 0.94, "kl_selection": kl * 0.99, "kl_test": kl}
    return row | {"perplexity_test": 18.3 * float(np.exp(kl))}


@pytest.fixture
def rows() -> pd.DataFrame:
    """Leaderboard rows."""
    rng = np.random.default_rng(3)
    records = [record("dense", [(GROUPS, 512)] * BLOCKS, 0, rng)]
    for size in np.linspace(0.97, 0.3, 20):
        records.append(record("front", shrink(float(size), rng), 0.3, rng))
    for size in (0.9, 0.8, 0.7, 0.6, 0.5, 0.4):
        options = [(g, w) for g in (1, 2, 3) for w in WIDTHS[1:]]
        best = max((o for o in options if ratio([o] * BLOCKS) <= size), key=lambda o: ratio([o] * BLOCKS))
        records.append(record(f"uniform@{size:.1f}", [best] * BLOCKS, 1.0, rng))
    return pd.DataFrame(records)


@pytest.fixture
def evaluated() -> pd.DataFrame:
    """Every evaluated candidate."""
    rng = np.random.default_rng(4)
    size = rng.uniform(0.28, 1.0, 900)
    kl = 0.3 * 2.8 * (1 - size) ** 2.2 * np.exp(rng.gamma(1.5, 0.5, 900))
    return pd.DataFrame({"params_ratio": size, "kl": kl, "order": np.arange(900)})


@pytest.fixture
def facts() -> RunFacts:
    """Circumstances."""
    return RunFacts(
        model="zoo/docs-12x256",
        data="docs",
        data_digest="9f2c1a7be0d4",
        method="path",
        seed=0,
        tokens_search=2_000_000,
        tokens_setup=310_000,
        tokens_final=420_000,
        evaluations=941,
        failed=2,
        wall_seconds=3725.0,
        block_runs=61_204,
        block_runs_naive=90_336,
        machine="AMD EPYC, 2 cores, AVX-512\ntorch 2.13.0, 1 thread, bfloat16",
        command="autoprune model=zoo/docs-12x256 data=docs space=[structured] search=path tokens=2e6 seed=0 out=runs/a",
        finished=True,
        latency_error={"prefill": (0.009, 0.021), "decode": (0.011, 0.026)},
        notes=("Latency was measured on a quiet machine.",),
        splits={"fitness": "256 windows of 256 tokens", "selection": "128 windows of 256 tokens"},
    )
