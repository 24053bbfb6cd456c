"""Batches asked for before earlier ones are told: overlapping, in a fixed order, replayed exactly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from autoprune.ledger import Ledger
from autoprune.objective import Proposal, Result
from autoprune.study import Budget, Job
from tests.core.runs import (
    LIMITED,
    SEARCHERS,
    FakeExecutor,
    Killed,
    Scripted,
    create,
    resumed,
    some,
    study,
)

NAMES = ("random ahead", "nsga2 ahead")


class Ordered(FakeExecutor):
    """Takes the next job from wherever `pick` says, and notes how many were waiting."""

    def __init__(self, pick: Callable[[int], int], die_after: int | None = None) -> None:
        super().__init__(die_after)
        self._pick = pick
        self.waiting: list[int] = []

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        while self._queue and timeout != 0:  # nothing is ready at once
            self.waiting.append(len(self._queue))
            self._queue.append(self._queue.pop(self._pick(len(self._queue))))
            yield next(super().results())


ORDERS: dict[str, Callable[[int], int]] = {
    "first": lambda n: 0,
    "last": lambda n: n - 1,
    "middle": lambda n: n // 2,
}


def ledger_of(path: Path, name: str, executor: FakeExecutor) -> list[tuple[Any, ...]]:
    ledger = create(path)
    study(ledger, SEARCHERS[name](), executor)
    rows = ledger.ordered()
    ledger.close()
    return rows


@pytest.mark.parametrize("name", NAMES)
def test_the_ledger_does_not_depend_on_who_is_faster(tmp_path: Path, name: str) -> None:
    found = [ledger_of(tmp_path / order, name, Ordered(pick)) for order, pick in ORDERS.items()]
    assert found[0] == found[1] == found[2] and len(found[0]) > 20


@pytest.mark.parametrize("name", NAMES)
def test_workers_never_wait_for_a_batch(tmp_path: Path, name: str) -> None:
    executor = Ordered(ORDERS["first"])
    ledger_of(tmp_path / "l", name, executor)
    assert max(executor.waiting) == 12, "three batches of four"
    assert min(executor.waiting[:-12]) > 4, "until the end there is always more than a batch"


def test_one_batch_at_a_time_unless_the_searcher_says_otherwise(tmp_path: Path) -> None:
    executor = Ordered(ORDERS["first"])
    ledger_of(tmp_path / "l", "random", executor)
    assert max(executor.waiting) == 4


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("count", [0, 3, 13, 30])
def test_killed_with_several_batches_out(tmp_path: Path, name: str, count: int) -> None:
    expected = ledger_of(tmp_path / "whole", name, FakeExecutor())
    path = tmp_path / "killed"
    ledger = create(path)
    executor = Ordered(ORDERS["middle"], die_after=count)
    with pytest.raises(Killed):
        study(ledger, SEARCHERS[name](), executor)
    ledger.close()
    assert resumed(path, name) == expected


class Ahead(Scripted):
    """Scripted, several batches ahead; remembers the order of asks and tells."""

    ahead = 2

    def __init__(self, batches: Sequence[Sequence[Any]]) -> None:
        super().__init__(batches)
        self.calls: list[str] = []

    def ask(self, n: int) -> list[Proposal]:
        self.calls.append("ask")
        return super().ask(n)

    def tell(self, results: Sequence[Result]) -> None:
        self.calls.append("tell")
        super().tell(results)


def test_asks_and_tells_take_turns_and_results_come_in_order(tmp_path: Path) -> None:
    a, b, c, d, e, f = some(6)
    searcher, executor = Ahead([(a, b), (c, d), (e, f)]), Ordered(ORDERS["last"])
    ledger = create(tmp_path / "l")
    assert study(ledger, searcher, executor, Budget()) == "finished"
    assert searcher.calls == ["ask", "ask", "tell", "ask", "tell", "tell"]
    assert [r.proposal.id for r in searcher.told] == list(range(6))
    assert ledger.events("asynchronous") == [{"phase": 0, "ahead": 2}]
    ledger.close()


def test_a_repeat_of_what_is_in_flight_waits_for_it_and_is_free(tmp_path: Path) -> None:
    a, b, c = some(3)
    searcher, executor = Ahead([(a, b), (b, c)]), FakeExecutor()
    ledger = create(tmp_path / "l")
    study(ledger, searcher, executor, Budget())
    assert len(executor.seen) == 3 and ledger.results(0, 1)[2].origin == "memory"
    ledger.close()


def test_evaluations_in_flight_count_against_the_budget(tmp_path: Path) -> None:
    executor = Ordered(ORDERS["first"])
    ledger = create(tmp_path / "l")
    assert study(ledger, SEARCHERS["random ahead"](), executor, Budget(evaluations=7)) == "evaluations"
    assert len(executor.seen) == 7
    ledger.close()


class Twice(FakeExecutor):
    """Answers everything twice."""

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        for result in list(super().results()):
            yield from (result, result)


def test_an_answer_too_many_is_an_error(tmp_path: Path) -> None:
    ledger = create(tmp_path / "l")
    with pytest.raises((RuntimeError, KeyError)):
        study(ledger, SEARCHERS["random"](), Twice(), LIMITED)
    ledger.close()


def test_the_event_is_recorded_once(tmp_path: Path) -> None:
    ledger_of(tmp_path / "l", "random ahead", FakeExecutor())
    resumed(tmp_path / "l", "random ahead")
    ledger = Ledger.open(tmp_path / "l")
    assert len(ledger.events("asynchronous")) == 1
    ledger.close()


def test_jobs_are_submitted_once(tmp_path: Path) -> None:
    seen: list[int] = []

    class Noting(FakeExecutor):
        def submit(self, batch: Sequence[Job]) -> None:
            seen.extend(j.proposal.id for j in batch)
            super().submit(batch)

    ledger_of(tmp_path / "l", "nsga2 ahead", Noting())
    assert len(seen) == len(set(seen)) > 20
