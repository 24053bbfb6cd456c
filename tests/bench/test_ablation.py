"""Every ablation leaves its part out, and only then differs from the whole method."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.bench.ablation import PARTS, NoBeliefs, NoModel, NoTable
from autoprune.searchers.auto import Auto
from tests.tabular import KL, PARAMS, Tabular, drive, tabular_problem, trace

SMALL = {"candidates": 8, "racers": 2}


@pytest.mark.parametrize("part", [p for p in PARTS.values() if p is not NoBeliefs])
def test_without_the_part_it_proposes_something_else(part: type[Auto]) -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    assert trace(part(problem, **SMALL), problem) != trace(Auto(problem, **SMALL), problem)
    assert trace(part(problem, **SMALL), problem) == trace(part(problem, **SMALL), problem)


def test_without_a_table_nothing_beyond_the_bound_is_measured() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    done = drive(NoTable(problem, **SMALL), Tabular(problem.space), 100)
    bound = problem.constraints[0]
    assert len(done) >= 100 and not any(bound.violation(r.metrics) for r in done)


def test_without_a_model_only_the_champions_own_gaps_are_known() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    searcher = NoModel(problem, **SMALL)
    for _ in range(30):
        searcher.tell([Tabular(problem.space)(p) for p in searcher.ask(8)])
        assert len({champion for champion, _ in searcher._model._known}) <= 1


def test_without_beliefs_a_measurement_is_all_that_counts() -> None:
    """Where nothing is noisy beliefs never decide a race, so the proposals would be the same."""
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    whole, without = Auto(problem, **SMALL), NoBeliefs(problem, **SMALL)
    drive(whole, Tabular(problem.space), 150)
    posterior = whole._model.posterior(problem.space.dense, *whole._prior(problem.space.dense), 0.1)
    steps = np.eye(len(posterior.best))[:3]
    pairs = zip(whole._believed(posterior, steps), without._believed(posterior, steps), strict=True)
    assert all(a.variance < 10 and b.variance > 1e5 for a, b in pairs)
