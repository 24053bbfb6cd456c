"""Every method by name on a space whose costs do not add up over genes."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.bench.methods import searcher
from autoprune.errors import SettingError
from autoprune.searchers.dp import DP
from autoprune.searchers.milp import MILP
from autoprune.searchers.problem import Problem, fill
from autoprune.searchers.tabular import Tabular
from autoprune.sublayers import SublayerSpace
from tests.joint import joint_space
from tests.tabular import KL, PARAMS, drive, tabular_problem

ANY_COST = ("auto", "random", "local", "greedy", "evopress", "evopress+", "nsga2", "nsga3", "tpe")
SMALL = {
    **{name: {"windows": 4} for name in ("random", "local", "nsga2", "nsga3", "tpe")},
    "evopress": {"windows": [1, 2, 4]},
    "evopress+": {"windows": [1, 2, 4]},
}


@pytest.fixture
def space() -> SublayerSpace:
    return joint_space()


def problem_of(space: SublayerSpace) -> Problem:
    return tabular_problem({"weights": "0.45x"}, (KL,), space=space)


@pytest.mark.parametrize("name", ANY_COST)
def test_proposals_hold_the_bound_and_get_better(name: str, space: SublayerSpace) -> None:
    problem, tabular = problem_of(space), Tabular(space, seed=2)
    done = drive(searcher(name, problem, SMALL.get(name, {})), tabular, 400)
    bound = problem.constraints[0]
    fitting = [r for r in done if not bound.violation(r.metrics)]
    rng = np.random.default_rng(0)
    drawn = [space.repair(space.dense, problem.constraints, rng) for _ in range(20)]
    assert len(fitting) > 20
    assert min(r.metrics["kl"] for r in fitting) < 0.9 * np.median([tabular.loss(c) for c in drawn])


def test_auto_beats_random(space: SublayerSpace) -> None:
    problem, tabular = problem_of(space), Tabular(space, seed=2)
    best = {}
    for name in ("auto", "random"):
        done = drive(searcher(name, problem, SMALL.get(name, {})), tabular, 600)
        best[name] = min(r.metrics["kl"] for r in done if not problem.constraints[0].violation(r.metrics))
    assert best["auto"] < 0.8 * best["random"]


@pytest.mark.parametrize("method", [DP, MILP])
def test_additive_methods_refuse(method: type[DP] | type[MILP], space: SublayerSpace) -> None:
    with pytest.raises(SettingError, match="weights does not"):
        method(problem_of(space), windows=4, confirm=4)


def test_fill_uses_the_room(space: SublayerSpace) -> None:
    problem = problem_of(space)
    least = space.repair(space.dense.with_value(0, 0), problem.constraints, np.random.default_rng(0))
    everywhere = range(len(space.genes))
    filled = fill(space, least, everywhere, problem.constraints, np.random.default_rng(1))
    assert all(a >= b for a, b in zip(filled.indices(), least.indices(), strict=True))
    for gene, value in enumerate(filled.indices()):
        if value < space.dense.indices()[gene]:
            assert problem.constraints[0].violation(space.cost(filled.with_value(gene, value + 1)))


def test_auto_searches_a_front(space: SublayerSpace) -> None:
    problem = tabular_problem(None, (KL, PARAMS), space=space)
    done = drive(searcher("auto", problem), Tabular(space, seed=2), 600)
    assert len({round(r.metrics["params"] / space.cost(space.dense)["params"], 1) for r in done}) > 5
