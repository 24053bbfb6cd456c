"""EvoPress's loop with moves between any sites: drop, then fill to the budget."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.searchers.evopress_plus import EvoPressPlus
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate
from tests.contracts import SearcherContract
from tests.searchers.methods import make_evopress, make_evopress_plus
from tests.tabular import SHAPE, WINDOWS, Tabular, drive, structured_space, tabular_problem


class TestEvoPressPlus(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> EvoPressPlus:
        return make_evopress_plus(problem, **settings)

    def too_many_windows(self) -> dict[str, Any]:
        return {"windows": (1, 2, WINDOWS + 1)}


def children(searcher: EvoPressPlus, evaluate: Tabular) -> list[Candidate]:
    """The first generation."""
    searcher.tell([evaluate(p) for p in searcher.ask(8)])
    return [p.candidate for p in searcher.ask(8)]


def test_capacity_moves_between_the_kinds_and_the_budget_is_filled() -> None:
    problem = tabular_problem({"params": "0.5x"})
    space, (limit,) = problem.space, problem.constraints
    searcher = make_evopress_plus(problem, offspring=40)
    found = children(searcher, Tabular(space))
    steps = np.array([c.indices() for c in found]) - np.array(searcher.parent.indices())
    assert (steps[:, 0::2].sum(axis=1) != 0).any(), "the split between attention and FFN never moved"
    for child, step in zip(found, steps, strict=True):
        assert (step < 0).any() and (step > 0).any()
        for gene in np.flatnonzero(step >= 0).tolist():
            if child.indices()[gene] < space.dense.indices()[gene]:
                raised = child.with_value(gene, child.indices()[gene] + 1)
                assert limit.violation(space.cost(raised)), "room was left"


@pytest.mark.parametrize(("far", "largest"), [(0.0, 3), (1.0, 8)])
def test_far_drops_lower_by_more_than_one_option(far: float, largest: int) -> None:
    problem = tabular_problem({"params": "0.7x"})
    searcher = make_evopress_plus(problem, offspring=64, far=far)
    found = children(searcher, Tabular(problem.space))
    falls = np.array(searcher.parent.indices()) - np.array([c.indices() for c in found])
    assert falls.max() <= largest and (falls.max() > 3) == (far == 1.0)


def test_a_better_split_than_evopress_finds() -> None:
    """The start has all the attention there is; only moves between kinds can trade it for FFN width."""
    space = structured_space(dataclasses.replace(SHAPE, blocks=8))
    problem = tabular_problem({"params": "0.5x"}, space=space)
    evaluate = Tabular(space)
    start = Candidate((4, 1) * 8)
    problem = dataclasses.replace(
        problem, seeds=(space.repair(start, problem.constraints, np.random.default_rng(0)),)
    )
    losses = []
    for make in (make_evopress, make_evopress_plus):
        searcher = make(problem)
        drive(searcher, evaluate, 1500)
        losses.append(evaluate.loss(searcher.parent))
    assert losses[1] < 0.9 * losses[0]


@pytest.mark.parametrize("settings", [{"far": 1.5}, {"swaps": 0}])
def test_mistakes_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"search.{name}={value}"):
        make_evopress_plus(tabular_problem({"params": "0.5x"}), **settings)
    with pytest.raises(SettingError, match=r"search=evopress\+ works at one budget"):
        make_evopress_plus(tabular_problem())
