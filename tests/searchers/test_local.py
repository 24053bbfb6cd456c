"""Hill climbing: it ends where no single move helps, and starts again."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.searchers.local import Local
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate
from tests.contracts import SearcherContract
from tests.searchers.methods import make_local
from tests.tabular import Tabular, drive, tabular_problem


class TestLocal(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> Local:
        return make_local(problem, **settings)


def better(problem: Problem, evaluate: Tabular, candidate: Candidate) -> list[Candidate]:
    """Neighbours of less loss: one site up, and where that needs room another one down by as little as gives it."""
    values, last = candidate.indices(), problem.space.dense.indices()
    (limit,) = problem.constraints
    found = []
    for up, value in enumerate(values):
        raised = candidate.with_value(up, min(value + 1, last[up]))
        rooms = [raised.with_value(g, o) for g, v in enumerate(values) if g != up for o in range(v)]
        for neighbour in [raised, *rooms]:
            if not limit.violation(problem.space.cost(neighbour)) and evaluate.loss(
                neighbour
            ) < evaluate.loss(candidate):
                found.append(neighbour)
    return found


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["pairwise", "deceptive"])
def test_it_ends_where_no_single_move_helps(first: bool, kind: str) -> None:
    problem = tabular_problem({"params": "0.5x"})
    evaluate = Tabular(problem.space, 0, kind)
    searcher = make_local(problem, first=first, restarts=0)
    done = drive(searcher, evaluate, 5000)
    assert searcher.finished and len(done) < 5000
    assert not better(problem, evaluate, searcher.best)
    start = min(evaluate.loss(s) for s in problem.seeds)
    moved = evaluate.loss(searcher.best) < start
    assert moved == (kind == "pairwise"), "uniform plans are traps of the deceptive one"


def test_the_first_better_one_costs_less_than_the_best() -> None:
    problem = tabular_problem({"params": "0.5x"})
    evaluate = Tabular(problem.space, 0)
    counts = [len(drive(make_local(problem, first=f, restarts=0), evaluate, 5000)) for f in (True, False)]
    assert counts[0] < 0.8 * counts[1]


def test_restarts_leave_a_local_optimum() -> None:
    problem = tabular_problem({"params": "0.5x"})
    evaluate = Tabular(problem.space, 3, "deceptive")
    losses = []
    for restarts in (0, 30):
        searcher = make_local(problem, restarts=restarts)
        drive(searcher, evaluate, 20_000)
        losses.append(evaluate.loss(searcher.best))
    assert losses[1] < losses[0]


def test_nothing_is_measured_twice() -> None:
    problem = tabular_problem({"params": "0.5x"})
    done = drive(make_local(problem), Tabular(problem.space), 1500)
    assert len({r.proposal.candidate for r in done}) == len(done)
    assert len({r.proposal.fidelity for r in done}) == 1


@pytest.mark.parametrize("settings", [{"batch": 0}, {"kick": 1.5}, {"restarts": -1}])
def test_mistakes_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"search.{name}={value}"):
        make_local(tabular_problem({"params": "0.5x"}), **settings)
    with pytest.raises(SettingError, match="search=local works at one budget"):
        make_local(tabular_problem())
