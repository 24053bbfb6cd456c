"""NSGA-III: nsga2's variation, survivors spread over reference directions."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import Objective
from autoprune.searchers.nsga3 import NSGA3, divisions
from autoprune.searchers.problem import Problem
from tests.contracts import SearcherContract
from tests.searchers.methods import make_nsga2, make_nsga3
from tests.tabular import KL, PARAMS, Tabular, drive, failing, tabular_problem

THREE = (KL, PARAMS, Objective("decode"))


class TestNSGA3(SearcherContract):
    def make(self, problem: Problem, **settings: Any) -> NSGA3:
        return make_nsga3(problem, **settings)


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_as_many_directions_as_the_population_holds(objectives: int) -> None:
    from pymoo.util.ref_dirs import get_reference_directions

    for most in (4, 16, 64):
        parts = divisions(objectives, most)
        count = len(get_reference_directions("das-dennis", objectives, n_partitions=parts))
        more = len(get_reference_directions("das-dennis", objectives, n_partitions=parts + 1))
        assert count <= most < more or (objectives == 1 and count == 1)


def test_directions_keep_three_objectives_evenly_spread() -> None:
    """Its survivors fill more directions than those of crowding distance do."""
    problem = tabular_problem({}, THREE)
    filled = {}
    for make in (make_nsga2, make_nsga3):
        searcher = make(problem, population=36, smallest=0.1)
        drive(searcher, Tabular(problem.space), 36 * 25)
        filled[make] = _directions(searcher._algorithm.pop.get("F"), searcher._algorithm.pop)
    assert filled[make_nsga3] > filled[make_nsga2]


def _directions(values: np.ndarray, population: Any) -> int:
    from pymoo.algorithms.moo.nsga3 import associate_to_niches
    from pymoo.util.ref_dirs import get_reference_directions

    grid = get_reference_directions("das-dennis", 3, n_partitions=divisions(3, 36))
    niche, _, _ = associate_to_niches(values, grid, values.min(axis=0), values.max(axis=0))
    return len(set(niche.tolist()))


def test_one_objective_is_minimised() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL,))
    done = [r.metrics["kl"] for r in drive(make_nsga3(problem), Tabular(problem.space), 400)]
    assert min(done[-40:]) < 0.9 * min(done[:8]) and all(map(math.isfinite, done))


def test_what_failed_does_not_survive() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    searcher = make_nsga3(problem, population=12)
    done = drive(searcher, failing(Tabular(problem.space), lambda p: p.id % 3 == 0), 240)
    failed = {r.proposal.candidate.indices() for r in done if not r.ok}
    assert failed and not failed & {tuple(row) for row in searcher._algorithm.pop.get("X").tolist()}


def test_warnings_of_the_process_stay_on() -> None:
    problem, before = tabular_problem({}, THREE), list(warnings.filters)
    drive(make_nsga3(problem), Tabular(problem.space), 80)
    assert list(warnings.filters) == before


def test_a_population_smaller_than_the_objectives_is_refused() -> None:
    many = (*THREE, Objective("flops"), Objective("bytes"))
    with pytest.raises(SettingError, match="search.population=4 must be at least the 5 objectives"):
        make_nsga3(tabular_problem({}, many), population=4)
