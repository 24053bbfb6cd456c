"""Analytic costs against numbers counted by hand."""

from __future__ import annotations

import pytest

from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Plan, SublayerPlan, plan_cost

SHAPE = Shape(
    "llama", blocks=2, hidden=8, heads=4, kv_groups=2, head_dim=3, ffn=16, vocabulary=10, tied=False
)
FULL = {"attention_bias": True, "ffn_bias": True, "norm_params": 8}


def shape(**changes: object) -> Shape:
    return Shape(**{**SHAPE.__dict__, **changes})  # type: ignore[arg-type]


def test_one_kv_group_takes_its_query_heads_along() -> None:
    cost = AnalyticCosts(SHAPE, tokens=5).sublayer(0, SublayerPlan.of("attention", kv_groups=1))
    weights = 8 * 6 + 2 * 8 * 3 + 6 * 8  # q, k and v, o: two query heads of 3 to a group
    assert cost["params"] == cost["params_total"] == weights
    assert cost["flops"] == 2 * 5 * weights + 2 * (2 * 5 * 5 * 6)  # products with weights, then QK and AV
    assert cost["kv_bytes"] == 2 * 2 * 3 * 5
    assert cost["bytes"] == 2 * weights


@pytest.mark.parametrize(("gated", "matrices"), [(True, 3), (False, 2)])
def test_a_narrow_ffn(gated: bool, matrices: int) -> None:
    cost = AnalyticCosts(shape(gated=gated), tokens=5).sublayer(0, SublayerPlan.of("ffn", width=4))
    assert cost["params"] == matrices * 8 * 4
    assert cost["flops"] == 2 * 5 * cost["params"]
    assert cost["kv_bytes"] == 0


def test_biases_and_norms() -> None:
    costs = AnalyticCosts(shape(**FULL))
    assert costs.sublayer(0, SublayerPlan.of("attention", kv_groups=1))["params"] == 144 + (6 + 3 + 3 + 8) + 8
    assert costs.sublayer(0, SublayerPlan.of("ffn", width=4))["params"] == 96 + (2 * 4 + 8) + 8


@pytest.mark.parametrize("gone", [SublayerPlan.of("attention", kv_groups=0), SublayerPlan.of("ffn", width=0)])
def test_gone_costs_nothing_norm_included(gone: SublayerPlan) -> None:
    assert set(AnalyticCosts(shape(**FULL)).sublayer(0, gone).values()) == {0.0}


@pytest.mark.parametrize(("tied", "embeddings"), [(True, 1), (False, 2)])
def test_outside_the_blocks(tied: bool, embeddings: int) -> None:
    base = AnalyticCosts(shape(tied=tied, norm_params=8, bytes_per_value=4), tokens=5).base
    assert base["params"] == 0
    assert base["params_total"] == embeddings * 80 + 8
    assert base["bytes"] == 4 * base["params_total"]
    assert base["flops"] == 2 * 5 * 80


def test_a_plan_costs_the_sum_of_its_sublayers() -> None:
    costs = AnalyticCosts(SHAPE, tokens=5)
    total = plan_cost(Plan.of([(1, 4), (0, 16)]), costs)
    assert total["params"] == 144 + 96 + 3 * 8 * 16
    assert total["params_total"] == total["params"] + costs.base["params_total"]
    assert SHAPE.heads_per_group == 2
