"""Small searches against a real ledger and a made-up executor, whole or killed somewhere."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.space import Candidate
from autoprune.study import Budget, Job, Phase, Searcher, Study
from tests.searchers.methods import (
    make_emo,
    make_evopress,
    make_nsga2,
    make_optuna_nsga2,
    make_random,
    make_tpe,
)
from tests.tabular import KL, PARAMS, Tabular, structured_space, tabular_problem

TOKENS = 10  # of a window
SPACE = structured_space()
DENSE = SPACE.dense
BOUNDS = {"params": "0.7x"}
PROBLEM = tabular_problem(BOUNDS, (KL, PARAMS))
LIMITED = Budget(tokens=64 * TOKENS)


class Killed(BaseException):
    """Stands for the end of the process."""


class FakeExecutor:
    """Computes losses in memory; hands results back last first, as workers may. Some candidates may fail."""

    capacity = 1

    def __init__(
        self, die_after: int | None = None, fails: Callable[[Proposal], bool] = lambda p: False
    ) -> None:
        self.seen: list[Job] = []
        self._queue: list[Job] = []
        self._die_after, self._fails = die_after, fails
        self._loss = Tabular(SPACE)

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""
        self._queue += batch

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """One result a job."""
        while self._queue:
            if len(self.seen) == self._die_after:
                raise Killed
            job = self._queue.pop()
            self.seen.append(job)
            yield self._result(job.proposal)

    def _result(self, proposal: Proposal) -> Result:
        if self._fails(proposal):
            return Result(proposal, Status.FAILED, reason="the model said NaN")
        windows = np.arange(*proposal.fidelity.windows)
        values = self._loss.loss(proposal.candidate) * (1 + 0.1 * np.sin(windows))
        mean = math.fsum(values.tolist()) / len(values)
        return Result(proposal, Status.OK, {"kl": mean}, {"kl": values, "nll": values + 2.0})

    def counters(self) -> dict[str, float]:
        """Telemetry."""
        return {"block_runs": 1.0}


class Scripted:
    """Proposes the given batches one after the other, and remembers what it was told."""

    batch = 4

    def __init__(self, batches: Iterable[Sequence[Candidate]], windows: int = 2) -> None:
        self._batches = [list(b) for b in batches]
        self._fidelity = Fidelity(Split.FITNESS, (0, windows))
        self._next = 0
        self.told: list[Result] = []

    @property
    def finished(self) -> bool:
        """After the last batch."""
        return not self._batches

    def ask(self, n: int) -> list[Proposal]:
        """The next batch."""
        batch = self._batches.pop(0)
        found = [Proposal(self._next + i, c, self._fidelity) for i, c in enumerate(batch)]
        self._next += len(batch)
        return found

    def tell(self, results: Sequence[Result]) -> None:
        """Remember."""
        self.told += results


def some(count: int, seed: int = 0) -> list[Candidate]:
    """Different candidates within the bounds."""
    rng = np.random.default_rng(seed)
    found: dict[Candidate, None] = {}
    while len(found) < count:
        row = Candidate(tuple(int(rng.integers(last + 1)) for last in DENSE.indices()))
        found.setdefault(SPACE.repair(row, PROBLEM.constraints, rng))
    return list(found)


def mixed() -> Scripted:
    """Repeats within and between batches, and candidates that break the constraint."""
    a, b, c, d, e, f, g, h = some(8)
    return Scripted([(a, b, a, DENSE), (b, DENSE, DENSE), (c, d, e, c), (f, a, g, h), (DENSE, h, f)])


SEARCHERS: dict[str, Callable[[], Searcher]] = {
    "random": lambda: make_random(PROBLEM, batch=4),
    "nsga2": lambda: make_nsga2(PROBLEM, population=4),
    "random ahead": lambda: make_random(PROBLEM, batch=4, ahead=3),
    "nsga2 ahead": lambda: make_nsga2(PROBLEM, population=4, ahead=3),
    "evopress": lambda: make_evopress(PROBLEM, offspring=4, survivors=(2, 1), windows=(1, 2)),
    "tpe": lambda: make_tpe(PROBLEM, batch=4, startup=8),
    "optuna_nsga2": lambda: make_optuna_nsga2(PROBLEM, population=4),
    "emo": lambda: make_emo(PROBLEM, population=4),
    "mixed": mixed,
}


def study(
    ledger: Ledger,
    searcher: Searcher,
    executor: FakeExecutor | None = None,
    budget: Budget = LIMITED,
    adopted: Mapping[tuple[str, Fidelity], Recorded] | None = None,
    watcher: Any = None,
) -> str:
    """Run (or go on with) one phase; returns the stop rule."""
    phase = Phase(0, SPACE, searcher, PROBLEM.objectives, PROBLEM.constraints, budget, TOKENS)
    return Study(phase, ledger, executor or FakeExecutor(), watcher, adopted).run()


def create(path: Path) -> Ledger:
    """A new ledger."""
    return Ledger.create(path, {"model": "made-up"})


def resumed(path: Path, name: str, budget: Budget = LIMITED) -> list[tuple[Any, ...]]:
    """The ordered columns after going on with a fresh searcher."""
    ledger = Ledger.open(path)
    study(ledger, SEARCHERS[name](), budget=budget)
    rows = ledger.ordered()
    ledger.close()
    return rows


def _killed_for_good(path: Path, name: str, statement: int) -> None:
    """Run until SQLite is given its n-th statement, then die by SIGKILL."""
    ledger = create(path)
    left = [statement]

    def count(_: str) -> None:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)

    ledger._db.set_trace_callback(count)
    study(ledger, SEARCHERS[name]())


if __name__ == "__main__":
    _killed_for_good(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
