"""Where searches start from."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoprune.errors import InfeasibleError
from autoprune.objective import Constraint, parse_constraint
from autoprune.run.seeds import DROPPED, dropped, seed_candidates
from autoprune.uniform import uniform_candidates
from tests.tabular import SHAPE, structured_space

SPACE = structured_space(dataclasses.replace(SHAPE, blocks=6))
DENSE = SPACE.cost(SPACE.dense)


def limits(**bounds: str) -> list[Constraint]:
    return [parse_constraint(m, text, DENSE) for m, text in bounds.items()]


def test_without_constraints_dense_and_every_uniform_ratio() -> None:
    found = seed_candidates(SPACE, [], [0.5, 0.8], 0)
    assert found[0] == SPACE.dense
    assert set(found[1:]) == {c for r in (0.5, 0.8) for c in uniform_candidates(SPACE, r)} - {SPACE.dense}
    assert len(set(found)) == len(found)


def test_with_a_budget_the_uniform_candidates_at_it() -> None:
    found = seed_candidates(SPACE, limits(params="0.6x"), [0.5, 0.8], 0)
    assert list(found) == uniform_candidates(SPACE, 0.6)


def test_a_latency_target_adds_dropped_sublayers() -> None:
    found = seed_candidates(SPACE, limits(decode="0.6x"), [0.5], 3)
    uniform = uniform_candidates(SPACE, 0.6, "decode")
    extra = [c for c in found if c not in uniform]
    assert list(found[: len(uniform)]) == uniform and 4 <= len(extra) <= DROPPED
    assert all(0 in c.indices() for c in extra)
    assert found == seed_candidates(SPACE, limits(decode="0.6x"), [0.5], 3)
    assert found != seed_candidates(SPACE, limits(decode="0.6x"), [0.5], 4)


def test_seeds_meet_every_constraint() -> None:
    constraints = limits(params="0.7x", decode="0.5x")
    found = seed_candidates(SPACE, constraints, [0.5], 0)
    assert found
    assert not [c for c in found for k in constraints if k.violation(SPACE.cost(c))]


@pytest.mark.parametrize("seed", range(5))
def test_inner_blocks_are_dropped_first(seed: int) -> None:
    constraints = limits(decode="0.75x")
    found = dropped(SPACE, constraints, np.random.default_rng(seed))
    gone = [SPACE.genes[i].block for i, v in enumerate(found.indices()) if v == 0]
    assert gone and all(0 < block < 5 for block in gone)
    assert not constraints[0].violation(SPACE.cost(found))


def test_tight_targets_drop_the_outer_blocks_too_and_impossible_ones_are_refused() -> None:
    assert dropped(SPACE, limits(decode="0.1x"), np.random.default_rng(0)).indices().count(0) > 8
    with pytest.raises(InfeasibleError, match="constraints.decode=0.01x"):
        dropped(SPACE, limits(decode="0.01x"), np.random.default_rng(0))
