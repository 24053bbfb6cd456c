"""Walks under additive bounds: exact sums, no room left, nothing lowered without need, any order possible."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.objective import Constraint
from autoprune.space import Candidate, CostTable
from autoprune.walk import Walk

ENTRIES = ((0.0, 3.0, 4.0), (1.0, 1.0, 1.0, 6.0), (0.0, 2.0), (0.0,))
TABLE = CostTable("params", 0.5, ENTRIES)
OTHER = CostTable("decode", 0.0, ((0.0, 0.0, 5.0), (0.0, 1.0, 2.0, 3.0), (0.0, 0.0), (0.0,)))
DENSE = Candidate((2, 3, 1, 0))


def test_steps_are_what_options_add() -> None:
    assert TABLE.steps[:, 0].tolist() == [0.0] * 4
    assert TABLE.steps[0, 1:].tolist() == [3.0, 1.0, 0.0, 0.0]
    assert TABLE.steps[1, 1:].tolist() == [0.0, 0.0, 5.0, 0.0]


def lowered(bounds: list[tuple[CostTable, float]], seed: int) -> Candidate:
    limits = [Constraint(t.metric, bound) for t, bound in bounds]
    walk = Walk(DENSE, limits, [t for t, _ in bounds])
    walk.lower(np.random.default_rng(seed))
    return walk.candidate()


@pytest.mark.parametrize("bound", [1.5, 4.0, 7.5, 12.5])
def test_lowering_ends_at_the_first_fit(bound: float) -> None:
    found = {lowered([(TABLE, bound)], seed) for seed in range(40)}
    for candidate in found:
        assert TABLE.total(candidate.indices()) <= bound
    assert len(found) > (bound < 12) * 1 and (bound < 12 or found == {DENSE})


def test_lowering_spares_genes_that_do_not_help_a_broken_bound() -> None:
    for seed in range(20):
        values = lowered([(OTHER, 4.0), (TABLE, 100.0)], seed).indices()
        assert values[2] == 1, "the gene saves nothing of what is broken"


def test_what_cannot_be_met_ends_at_zero() -> None:
    assert lowered([(TABLE, 0.1)], 0) == Candidate((0, 0, 0, 0))


@pytest.mark.parametrize("seed", range(20))
def test_filling_leaves_no_room_and_respects_the_highest(seed: int) -> None:
    limits = [Constraint("params", 7.5), Constraint("decode", 6.0)]
    walk, highest = Walk(Candidate((0, 0, 0, 0)), limits, [TABLE, OTHER]), np.array([2, 2, 1, 0])
    walk.fill(highest, np.random.default_rng(seed))
    full = walk.candidate()
    for gene, value in enumerate(full.indices()):
        assert value <= highest[gene]
        if value < highest[gene]:
            raised = full.with_value(gene, value + 1).indices()
            assert TABLE.total(raised) > 7.5 or OTHER.total(raised) > 6.0
    assert TABLE.total(full.indices()) <= 7.5 and OTHER.total(full.indices()) <= 6.0


def test_filling_stops_at_a_goal() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([2, 3, 1, 0])
    for goal in (0.0, 3.0, 9.0, 99.0):
        walk = Walk(Candidate((0, 0, 0, 0)), [], [])
        walk.fill(sizes, rng, (TABLE, goal))
        total = TABLE.total(walk.values.tolist())
        assert total >= min(goal, TABLE.dense)
        assert total < goal + 5.0 + 1e-9 or goal == 0.0
    walk = Walk(Candidate((0, 0, 0, 0)), [], [])
    walk.fill(sizes, rng, (TABLE, 1.0))
    assert walk.candidate() == Candidate((0, 0, 0, 0)), "the goal is met already"
