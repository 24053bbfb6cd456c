"""What searchers share: filling up to a budget, and generators that depend on seed and step only."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.searchers.problem import fill, step_rng
from autoprune.space import Candidate, CostTable
from autoprune.sublayers import SublayerSpace
from tests.tabular import SHAPE, structured_space, tabular_problem


class _NotAdditive(SublayerSpace):
    """Prices whole candidates only."""

    def cost_table(self, metric: str) -> CostTable | None:
        return None


@pytest.mark.parametrize(
    "bounds", [{"params": "0.6x"}, {"decode": "0.5x"}, {"params": "0.8x", "decode": "0.5x"}]
)
@pytest.mark.parametrize("seed", range(5))
def test_fill_uses_what_room_there_is(bounds: dict[str, str], seed: int) -> None:
    problem = tabular_problem(bounds)
    space, limits, genes = problem.space, problem.constraints, (0, 1, 3, 6)
    start = Candidate((0, 1) * SHAPE.blocks)
    full = fill(space, start, genes, limits, step_rng(seed, 0))
    assert full == fill(space, start, genes, limits, step_rng(seed, 0))
    assert not any(c.violation(space.cost(full)) for c in limits)
    for gene, (new, old, last) in enumerate(
        zip(full.indices(), start.indices(), space.dense.indices(), strict=True)
    ):
        assert new >= old and (gene in genes or new == old)
        if gene in genes and new < last:
            assert any(c.violation(space.cost(full.with_value(gene, new + 1))) for c in limits)


def test_fill_needs_no_tables() -> None:
    problem, plain = tabular_problem({"decode": "0.5x"}), structured_space()
    other = _NotAdditive(plain.genes, plain.full, plain.costs)
    start, (limit,) = Candidate((0,) * len(plain.genes)), problem.constraints
    found = {fill(other, start, range(8), [limit], step_rng(seed, 1)) for seed in range(5)}
    assert len(found) == 5
    for full in found:
        for gene, (value, last) in enumerate(zip(full.indices(), plain.dense.indices(), strict=True)):
            raised = plain.cost(full.with_value(gene, min(value + 1, last)))
            assert value == last or limit.violation(raised)
        assert not limit.violation(plain.cost(full))


def test_generators_differ_by_seed_and_step() -> None:
    found = {tuple(step_rng(seed, step).integers(0, 1 << 30, 3)) for seed in range(5) for step in range(5)}
    assert len(found) == 25
    assert np.array_equal(step_rng(1, 2).random(4), step_rng(1, 2).random(4))
