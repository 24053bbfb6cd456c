"""Walks along costs that do not add up: only what lessens a broken cost is lowered, only what fits is raised."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest

from autoprune.objective import Constraint
from autoprune.space import Candidate
from autoprune.stepwise import StepWalk


def price(candidate: Candidate) -> Mapping[str, float]:
    """The product of the first two genes; the third costs something else."""
    first, second, third = candidate.indices()
    return {"flops": float(first * second), "bytes": float(third)}


@pytest.mark.parametrize("seed", range(8))
def test_what_does_not_lessen_a_broken_cost_stays(seed: int) -> None:
    walk = StepWalk(Candidate((4, 4, 4)), [Constraint("flops", 6.0, "")], price)
    walk.lower(np.random.default_rng(seed))
    assert price(walk.candidate())["flops"] <= 6.0
    assert walk.candidate().indices()[2] == 4


@pytest.mark.parametrize("seed", range(8))
def test_what_fits_is_raised_and_nothing_above_its_highest(seed: int) -> None:
    bounds = [Constraint("flops", 6.0, ""), Constraint("bytes", 2.0, "")]
    walk = StepWalk(Candidate((1, 1, 0)), bounds, price)
    walk.fill(np.array([4, 4, 4]), np.random.default_rng(seed))
    first, second, third = walk.candidate().indices()
    assert third == 2 and first <= 4 and second <= 4 and first * second <= 6
    assert first * (second + 1) > 6 or second == 4
    assert (first + 1) * second > 6 or first == 4


def test_a_goal_ends_the_climb() -> None:
    walk = StepWalk(Candidate((1, 1, 0)), [], price)
    walk.fill(np.array([4, 4, 0]), np.random.default_rng(0), ("flops", 3.0))
    assert 3 <= price(walk.candidate())["flops"] < 16


def test_with_nothing_left_to_lower_it_ends() -> None:
    walk = StepWalk(Candidate((1, 1, 1)), [Constraint("flops", -1.0, "")], price)
    walk.lower(np.random.default_rng(0))
    assert price(walk.candidate())["flops"] == 0.0
