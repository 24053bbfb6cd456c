"""NSGA-II: whole generations, depth-ordered variation, a better front than random's at the same cost."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import Objective, Result
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.operators import DepthCrossover, StepMutation
from autoprune.searchers.problem import Problem
from autoprune.shape import AnalyticCosts
from autoprune.space import OptionGene, Plan
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_nsga2, make_random
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, failing, structured_space, tabular_problem


class TestNSGA2(SearcherContract):
    def make(self, problem: Problem, **settings: Any) -> NSGA2:
        return make_nsga2(problem, **settings)


def area(done: list[Result], dense: float) -> float:
    """What the front of (params share, log loss) dominates up to (1, log 30)."""
    pairs = ((r.metrics["params"] / dense, math.log(max(r.metrics["kl"], 1e-3))) for r in done)
    total, floor = 0.0, math.log(30.0)
    for share, loss in sorted(pairs):
        if share < 1.0 and loss < floor:
            total += (1.0 - share) * (floor - loss)
            floor = loss
    return total


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_front_is_better_than_random_s(seed: int) -> None:
    space = structured_space(dataclasses.replace(SHAPE, blocks=12))
    problem = tabular_problem({}, (KL, PARAMS), seed, space)
    evaluate, dense = Tabular(space, seed), space.cost(space.dense)["params"]
    searched = area(drive(make_nsga2(problem, population=16), evaluate, 960), dense)
    drawn = area(drive(make_random(problem), evaluate, 960), dense)
    assert searched > 1.04 * drawn


def test_a_generation_is_whole_whatever_is_asked() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    evaluate, searcher = Tabular(problem.space), make_nsga2(problem)
    for asked in (1, 8, 100):
        proposals = searcher.ask(asked)
        assert len({p.candidate for p in proposals}) == len(proposals) == 8
        searcher.tell([evaluate(p) for p in proposals])


def test_the_first_generation_holds_the_seeds() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    first = [p.candidate for p in make_nsga2(problem, smallest=0.0).ask(8)]
    assert {problem.seeds[0], problem.seeds[-1]} <= set(first)  # both ends of the sizes
    assert len(set(problem.seeds) & set(first)) >= 4


def test_nothing_below_the_smallest_size_of_interest() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    dense = problem.space.cost(problem.space.dense)["params"]
    for smallest in (0.0, 0.45):
        done = drive(make_nsga2(problem, smallest=smallest), Tabular(problem.space), 200)
        least = min(r.metrics["params"] for r in done) / dense
        assert (least >= 0.45) == (smallest == 0.45)


def test_a_constraint_outranks_the_smallest_size() -> None:
    problem = tabular_problem({"params": "0.3x"}, (KL, PARAMS))
    done = drive(make_nsga2(problem, smallest=0.9), Tabular(problem.space), 60)
    assert all(r.metrics["params"] <= problem.constraints[0].bound for r in done)


def test_what_failed_does_not_survive_even_in_a_huge_model() -> None:
    """Failed candidates must look worse than any parameter count."""
    shape = dataclasses.replace(SHAPE, hidden=8192, head_dim=1024, ffn=65536)
    problem = tabular_problem({}, (KL, PARAMS), space=structured_space(shape))
    assert problem.space.cost(problem.space.dense)["params"] > 5e9
    searcher = make_nsga2(problem, population=12)
    evaluate = failing(Tabular(problem.space), lambda p: p.id % 3 == 0)
    done = drive(searcher, evaluate, 240)
    failed = {r.proposal.candidate.indices() for r in done if not r.ok}
    alive = {tuple(row) for row in searcher._algorithm.pop.get("X").tolist()}
    assert failed and not failed & alive


def test_losses_are_compared_on_a_logarithmic_scale() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    searcher = make_nsga2(problem)
    proposals = searcher.ask(8)
    searcher.tell([Tabular(problem.space)(p) for p in proposals])
    kept = dict(
        zip(
            map(tuple, searcher._algorithm.pop.get("X").tolist()),
            searcher._algorithm.pop.get("F"),
            strict=True,
        )
    )
    for proposal in proposals:
        loss = Tabular(problem.space).loss(proposal.candidate)
        assert kept[proposal.candidate.indices()][0] == pytest.approx(math.log(max(loss, 1e-9)))


def test_a_metric_may_be_maximised() -> None:
    problem = tabular_problem({}, (Objective("params", maximise=True), KL))
    done = drive(make_nsga2(problem, log=()), Tabular(problem.space), 200)
    dense = problem.space.cost(problem.space.dense)["params"]
    first, last = (np.mean([r.metrics["params"] / dense for r in part]) for part in (done[:8], done[-8:]))
    assert last > first


def test_a_small_space_ends_instead_of_breaking() -> None:
    genes = (OptionGene(0, "attention", "kv_groups", (0, 1, 2, 3, 4)),)
    space = SublayerSpace(genes, Plan.of([(4, 64)]), (AnalyticCosts(SHAPE),))
    searcher = make_nsga2(tabular_problem({}, (KL, PARAMS), space=space))
    done = drive(searcher, Tabular(space), 1000)
    assert searcher.finished and searcher.ask(8) == []
    assert {r.proposal.candidate.indices() for r in done} >= {(2,), (3,), (4,)}


@pytest.mark.parametrize(
    "settings",
    [{"population": 3}, {"crossover": 1.5}, {"smallest": -0.1}, {"smallest": 1.1}, {"mutation": -1.0}],
)
def test_mistakes_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"search.{name}={value}"):
        make_nsga2(tabular_problem(), **settings)


class _Bounds:
    xu = np.array([4, 8, 4, 8, 4, 8])


def test_crossover_joins_the_shallow_part_of_one_to_the_deep_part_of_the_other() -> None:
    parents = np.array([np.zeros((20, 6), int), np.ones((20, 6), int)])
    first, second = DepthCrossover(1.0)._do(_Bounds, parents, random_state=np.random.default_rng(0))
    for one, other in zip(first, second, strict=True):
        cut = int((one == 0).sum())
        assert 0 < cut < 6
        assert one.tolist() == [0] * cut + [1] * (6 - cut)
        assert other.tolist() == [1] * cut + [0] * (6 - cut)
    assert len({tuple(row) for row in first.tolist()}) > 3


def test_mutation_stays_within_the_options_and_changes_as_many_as_asked() -> None:
    start = np.tile(np.array([2, 4, 0, 8, 4, 0]), (400, 1))
    changed = {}
    for mean in (0.0, 1.0, 4.0):
        rows = StepMutation(mean)._do(_Bounds, start, random_state=np.random.default_rng(0))
        assert (rows >= 0).all() and (rows <= _Bounds.xu).all()
        changed[mean] = float((rows != start).sum(axis=1).mean())
    assert changed[0.0] == 0.0 < changed[1.0] < changed[4.0]
    assert 0.7 < changed[1.0] < 2.1
    steps = StepMutation(1.0)._do(_Bounds, start, random_state=np.random.default_rng(0)) - start
    assert ((steps == 1).any(axis=1) & (steps == -1).any(axis=1)).any(), "no switches between genes"
