"""Iterative removal: least loss per saved cost, down to the budget or as far as a tolerance goes."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.objective import Result
from autoprune.searchers.greedy import Greedy
from autoprune.searchers.problem import Problem
from autoprune.study import Searcher
from tests.contracts import SearcherContract
from tests.searchers.methods import make_greedy
from tests.tabular import KL, PARAMS, SHAPE, WINDOWS, Tabular, drive, tabular_problem


class TestGreedy(SearcherContract):
    least, one_quality = 40, True

    def make(self, problem: Problem, **settings: Any) -> Greedy:
        return make_greedy(problem, **settings)


def rounds(searcher: Searcher, evaluate: Tabular) -> list[list[Result]]:
    """The results of every step."""
    found = []
    while proposals := searcher.ask(searcher.batch):
        found.append([evaluate(p) for p in proposals])
        searcher.tell(found[-1])
    return found


def test_each_step_takes_what_loses_least_for_what_it_saves() -> None:
    problem = tabular_problem({"params": "0.4x"})
    space, evaluate = problem.space, Tabular(problem.space, 1)
    steps = rounds(make_greedy(problem), evaluate)
    assert len(steps) > 4 and steps[0][0].proposal.candidate == space.dense
    bound = problem.constraints[0].bound
    for told, following in zip(steps, steps[1:], strict=False):
        parent, taken = told[0], following[0].proposal.candidate
        over = parent.metrics["params"] - bound

        def price(r: Result, parent: Result = parent, over: float = over) -> float:
            saved = min(over, parent.metrics["params"] - r.metrics["params"])
            return (r.metrics["kl"] - parent.metrics["kl"]) / saved

        best = min(told[1:], key=price)
        chosen = next(r for r in told if r.proposal.candidate == taken)
        assert price(chosen) == pytest.approx(price(best))


def test_windows_are_drawn_afresh_for_every_step() -> None:
    problem = tabular_problem({"params": "0.4x"})
    steps = rounds(make_greedy(problem), Tabular(problem.space))
    seen = [{r.proposal.fidelity.windows for r in step} for step in steps]
    assert all(len(s) == 1 for s in seen) and len({w for s in seen[:-1] for w in s}) > 2
    assert seen[-1] == {(0, 4)}


def test_the_room_that_is_left_is_filled_and_the_best_fill_named_first() -> None:
    problem = tabular_problem({"params": "0.47x"})
    evaluate = Tabular(problem.space, 2)
    searcher = make_greedy(problem, step=4)
    last = rounds(searcher, evaluate)[-1]
    assert len(last) > 2
    losses = [evaluate.loss(c) for c in searcher.finalists()]
    assert losses == sorted(losses) and losses[0] < evaluate.loss(last[0].proposal.candidate)


def test_whole_sites_are_removed_at_once_only_when_asked() -> None:
    problem = tabular_problem({"params": "0.4x"})
    for remove in (True, False):
        first = make_greedy(problem, remove=remove).ask(1)
        zeros = [p for p in first if 0 in p.candidate.indices()]
        assert len(zeros) == (2 * SHAPE.blocks if remove else 0)


@pytest.mark.parametrize("tolerance", [0.1, 1.0])
def test_a_tolerance_is_used_up_and_never_exceeded(tolerance: float) -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    evaluate = Tabular(problem.space, 1)
    searcher = make_greedy(problem, tolerance=tolerance)
    drive(searcher, evaluate, 10_000)
    (last,) = searcher.finalists()
    assert 0.0 < evaluate.loss(last) <= tolerance
    for gene, value in enumerate(last.indices()):
        if value:
            assert evaluate.loss(last.with_value(gene, max(0, value - 2))) > tolerance


def test_tolerance_and_constraint_exclude_each_other() -> None:
    with pytest.raises(
        SettingError, match="search.tolerance=0.1: search=greedy takes a tolerance only without"
    ):
        make_greedy(tabular_problem({"params": "0.5x"}), tolerance=0.1)
    with pytest.raises(SettingError, match="search.tolerance=None: .* or constraints"):
        make_greedy(tabular_problem({}, (KL, PARAMS)))


@pytest.mark.parametrize("settings", [{"step": 0}, {"fills": -1}, {"confirm": WINDOWS + 1}])
def test_mistakes_are_refused(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"search.{name}={value}"):
        make_greedy(tabular_problem({"params": "0.5x"}), **settings)
    with pytest.raises(SettingError, match="search.tolerance=-1.0"):
        make_greedy(tabular_problem(), tolerance=-1.0)
