"""Evaluators that need nothing but the plan."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import pytest

from autoprune.hardware.table import Entry, LatencyTable
from autoprune.hardware.workload import Workload
from autoprune.objective import Fidelity, Split
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Plan
from evaluators.latency import Latency
from evaluators.size import Size

SHAPE = Shape("llama", 2, 16, 4, 2, 4, 32, 64, tied=True, norm_params=16)
DENSE, SMALL, NOTHING = Plan.of([(2, 32)] * 2), Plan.of([(1, 8), (2, 0)]), Plan.of([(0, 0)] * 2)
FIDELITY = Fidelity(Split.FITNESS, (0, 1))


def table(**changes: Any) -> LatencyTable:
    """One millisecond a group, a tenth a neuron, for a prompt; a tenth of that for a token."""
    rows: list[Any] = [("attention", "kv_groups", o, float(o)) for o in (1, 2)]
    rows += [("ffn", "width", o, o / 10) for o in (8, 32)]
    noise = {"prefill": 0.0, "decode": 0.0}
    entries = tuple(Entry(k, n, o, {"prefill": ms, "decode": ms / 10}, noise) for k, n, o, ms in rows)
    options = {"kv_groups": (0, 1, 2), "width": (0, 8, 32)}
    base = {"prefill": 5.0, "decode": 1.0}
    found = LatencyTable(base, entries, Workload(), {}, asdict(SHAPE), "float32", options)
    return replace(found, **changes)


def test_sizes_of_each_plan() -> None:
    scores = Size(AnalyticCosts(SHAPE)).evaluate([DENSE, SMALL, NOTHING], FIDELITY)
    assert [s.metrics["params"] for s in scores] == [
        2 * ((16 * (16 + 8) * 2 + 16) + (3 * 16 * 32 + 16)),
        (16 * (8 + 4) * 2 + 16) + (3 * 16 * 8 + 16) + (16 * (16 + 8) * 2 + 16),
        0,
    ]
    assert scores[2].metrics["params_total"] == 64 * 16 + 16 and scores[0].per_window == {}
    assert scores[0].metrics["bytes"] == 2 * scores[0].metrics["params_total"]


def test_latencies_of_each_plan() -> None:
    scores = Latency(table()).evaluate([DENSE, SMALL, NOTHING], FIDELITY)
    assert [s.metrics["prefill"] for s in scores] == pytest.approx([5 + 2 * (2 + 3.2), 5 + 1 + 0.8 + 2, 5])
    assert [s.metrics["decode"] for s in scores] == pytest.approx([1 + 2 * 0.52, 1 + 0.38, 1])


def test_the_tables_correction_is_in_the_prediction() -> None:
    corrected = table(correction={"prefill": (0.5, 2.0), "decode": (0.0, 1.0)})
    assert Latency(corrected).evaluate([NOTHING], FIDELITY)[0].metrics["prefill"] == pytest.approx(10.5)


def test_metrics_that_are_promised_are_given() -> None:
    for evaluator in (Size(AnalyticCosts(SHAPE)), Latency(table())):
        assert evaluator.needs == "plan"
        assert set(evaluator.evaluate([SMALL], FIDELITY)[0].metrics) == set(evaluator.metrics)
