"""Optimal brain surgeon: scores are true removal costs, downdates equal fresh inverses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from autoprune.pruning.criteria import obs
from autoprune.pruning.criteria.activation import activation_order
from autoprune.pruning.criteria.obs import obs_order

UNITS = 6


def problem(size: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Correlated inputs' second moment [d, d] and a projection [5, d]."""
    rng = torch.Generator().manual_seed(seed)
    d = UNITS * size
    x = torch.randn(200, d, generator=rng, dtype=torch.float64) @ torch.randn(
        d, d, generator=rng, dtype=torch.float64
    )
    return x.t() @ x, torch.randn(5, d, generator=rng, dtype=torch.float64)


def cost(second: Tensor, weight: Tensor, kept: list[int], size: int) -> float:
    """Squared error of the best projection over the columns of the kept units."""
    at = torch.tensor([u * size + i for u in kept for i in range(size)])
    best = torch.zeros_like(weight)
    best[:, at] = torch.linalg.solve(second[at][:, at], second[at] @ weight.t()).t()
    return float(torch.einsum("oi,ij,oj->", weight - best, second, weight - best))


@pytest.mark.parametrize("settle", [1, 9, 1000])
@pytest.mark.parametrize("size", [1, 4])
def test_each_step_removes_the_unit_that_is_cheapest_to_lose(
    size: int, settle: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(obs, "SETTLE", settle)
    second, weight = problem(size)
    order = obs_order(second, weight, UNITS).tolist()
    for kept in range(UNITS - 1, 0, -1):
        before = order[: kept + 1]
        costs = {u: cost(second, weight, [v for v in before if v != u], size) for u in before}
        assert min(costs, key=costs.__getitem__) == order[kept]


@pytest.mark.parametrize("settle", [1, 5, 1000])
@pytest.mark.parametrize("size", [1, 4])
def test_scores_are_what_a_removal_costs(size: int, settle: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At first and after removals, whether or not the large matrices were brought up to date."""
    monkeypatch.setattr(obs, "SETTLE", settle)
    second, weight = problem(size)
    left, there = obs.Left(second, weight, UNITS), list(range(UNITS))
    for leaving in (None, 4, 1, 3):
        if leaving is not None:
            left.remove((left.units == leaving).nonzero().flatten())
            there.remove(leaving)
        lost = cost(second, weight, there, size) if len(there) < UNITS else 0.0
        scores = dict(zip(left.units.tolist(), left.scores().tolist(), strict=True))
        for unit in there:
            wanted = cost(second, weight, [u for u in there if u != unit], size) - lost
            assert scores[unit] == pytest.approx(wanted, rel=1e-6)
        assert all(score == torch.inf for unit, score in scores.items() if unit not in there)


@pytest.mark.parametrize("rounds", [[[4, 1]], [[4], [1]]])
@pytest.mark.parametrize("size", [1, 4])
def test_the_downdated_inverse_is_the_inverse_of_what_is_kept(size: int, rounds: list[list[int]]) -> None:
    second, weight = problem(size)
    left = obs.Left(second, weight, UNITS)
    for leaving in rounds:
        left.remove(torch.tensor(leaving))
    left.settle()
    assert left.units.tolist() == [0, 2, 3, 5]
    at = torch.tensor([u * size + i for u in (0, 2, 3, 5) for i in range(size)])
    assert torch.allclose(left.inverse, torch.linalg.inv(second[at][:, at]), rtol=1e-6)
    best = torch.linalg.solve(second[at][:, at], second[at] @ weight.t()).t()
    assert torch.allclose(left.weight, best, rtol=1e-6)


def test_of_two_equal_units_one_leaves_first_where_activation_keeps_both() -> None:
    """Correlations count: a strong unit with a twin is worth little."""
    x = torch.randn(300, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = torch.cat([3 * x[:, :1], 3 * x[:, :1] + 1e-3 * x[:, 1:2], x[:, 2:]], dim=1)
    second, weight = x.t() @ x, torch.ones(2, 3, dtype=torch.float64)
    assert set(activation_order(second, weight, 3).tolist()[:2]) == {0, 1}
    assert set(obs_order(second, weight, 3).tolist()[:2]) != {0, 1}


def test_several_units_a_round_give_a_whole_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obs, "ROUNDS", 2)
    second, weight = problem(1)
    assert sorted(obs_order(second, weight, UNITS).tolist()) == list(range(UNITS))
