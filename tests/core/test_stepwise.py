"""Walks along costs that do not add up: only what lessens a broken cost is lowered, only what fits is raised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

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


def dearer(candidate: Candidate) -> Mapping[str, float]:
    """`prefill` is what all genes keep; of the first two, `decode` what they leave out."""
    first, second, third = candidate.indices()
    return {"prefill": float(first + second + third), "decode": float(8 - first - second)}


@pytest.mark.parametrize("seed", range(8))
def test_costs_that_fall_as_more_is_kept_are_climbed_away_from(seed: int) -> None:
    """Only with `tops`, no further, and never over another bound."""
    tops, bounds = np.array([4, 4, 0]), [Constraint("prefill", 7.0, ""), Constraint("decode", 3.0, "")]
    walk = StepWalk(Candidate((0, 1, 4)), bounds, dearer, tops)
    walk.lower(np.random.default_rng(seed))
    first, second, third = walk.candidate().indices()
    assert first + second == 5 and third == 0
    plain = StepWalk(Candidate((0, 1, 4)), bounds, dearer)
    plain.lower(np.random.default_rng(seed))
    assert dearer(plain.candidate())["decode"] == 8.0
    narrow = StepWalk(Candidate((0, 1, 4)), [replace(bounds[0], bound=4.0), bounds[1]], dearer, tops)
    narrow.lower(np.random.default_rng(seed))
    assert dearer(narrow.candidate()) == {"prefill": 4.0, "decode": 4.0}
