"""What the flagship does when nothing is left to try: budgets between those of a front, descents from elsewhere."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from autoprune.searchers.auto import Auto
from autoprune.searchers.gaps import Held, halfway
from autoprune.searchers.problem import Problem
from autoprune.searchers.proposals import kicked
from autoprune.searchers.rounds import Play
from autoprune.space import Candidate
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, structured_space, tabular_problem, trace

FRONT = [Held(100.0, 100.0, -5.0), Held(80.0, 70.0, -2.0), Held(50.0, 50.0, 0.0)]


class Noted(Auto):
    """Notes the champions before the first descent from elsewhere."""

    before: Sequence[Candidate] = ()

    def _elsewhere(self) -> Play:
        self.before = self.before or [a.champion for a in self._anchors]
        return (yield from super()._elsewhere())


def deceptive(seed: int) -> tuple[Problem, Tabular]:
    space = structured_space(dataclasses.replace(SHAPE, blocks=6))
    problem = tabular_problem({"params": "0.5x"}, (KL, PARAMS), seed, space)
    return problem, Tabular(space, seed, "deceptive")


def test_a_new_budget_lies_halfway_into_the_largest_gap() -> None:
    assert halfway(FRONT, 1.0) == (80 + 100) / 2, "20 x 3 beats 20 x 2"
    explored = [*FRONT, Held(95.0, 70.0, -2.0)]
    assert halfway(explored, 1.0) == (50 + 70) / 2, "nothing better up to 95"
    assert halfway(explored, 30.0) is None, "no gap is as wide"


@pytest.mark.parametrize("value", [-2.0, -1.9, np.inf])
def test_where_more_room_is_no_better_there_is_no_gap(value: float) -> None:
    assert halfway([Held(80.0, 70.0, -2.0), Held(90.0, 90.0, value)], 1.0) is None


def test_halving_ends() -> None:
    front = list(FRONT)
    for number in itertools.count():
        bound = halfway(front, 0.1)
        if bound is None:
            break
        assert number < 100 and bound not in [h.bound for h in front]
        below = min((h for h in front if h.bound < bound), key=lambda h: h.value)
        front.append(dataclasses.replace(below, bound=bound))
    assert number > 3


def test_a_front_that_is_done_gets_budgets_between_those_it_has() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    evaluate, searcher = Tabular(problem.space), Auto(problem, spacing=0.2)
    drive(searcher, evaluate, 500)
    bounds = [a.bound for a in searcher._anchors]
    assert len(bounds) > len(searcher._budgets) + 2 and bounds == sorted(set(bounds), reverse=True)
    inside = [
        a for a in searcher._anchors if a.bound not in [b.constraints[0].bound for b in searcher._budgets]
    ]
    costs = [problem.space.cost(a.champion)["params"] for a in inside]
    assert all(c <= a.bound for c, a in zip(costs, inside, strict=True)) and len(set(costs)) > 2
    assert set(searcher.finalists()) >= {a.champion for a in searcher._anchors}


@pytest.mark.parametrize("seed", [2, 3])
def test_descents_from_elsewhere_leave_a_trap_and_end(seed: int) -> None:
    problem, evaluate = deceptive(seed)
    searcher = Noted(problem)
    drive(searcher, evaluate, 4000)
    (before,), (anchor,) = searcher.before, searcher._anchors
    assert searcher.finished and evaluate.loss(anchor.champion) < 0.8 * evaluate.loss(before)
    assert not any(c.violation(problem.space.cost(anchor.champion)) for c in problem.constraints)


def test_budgets_between_are_the_same_again() -> None:
    front = tabular_problem({}, (KL, PARAMS))
    assert trace(Auto(front, spacing=0.2), front, 400) == trace(Auto(front, spacing=0.2), front, 400)


def test_a_kick_leaves_some_blocks_one_option_and_the_rest_alone() -> None:
    values, blocks, sizes = np.zeros((24, 9)), np.repeat(np.arange(12), 2), np.tile([5, 9], 12)
    shares = []
    for seed in range(40):
        found = kicked(values, blocks, sizes, np.random.default_rng(seed))
        fixed = np.isinf(found).sum(axis=1) == 8
        assert set(np.isinf(found).sum(axis=1)) <= {0, 8} and (fixed[::2] == fixed[1::2]).all()
        assert 1 <= fixed.sum() // 2 <= 4
        picked = found.argmin(axis=1)
        assert (picked < sizes).all()
        shares += [abs(picked[g] / 4 - picked[g + 1] / 8) for g in np.flatnonzero(fixed[::2]) * 2]
    assert 0.3 < np.mean(np.array(shares) <= 0.2) < 0.9, "half of the kicks move a block's sites together"
