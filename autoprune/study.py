"""The one loop of a phase: ask, record, execute, record, tell; budgets, stop rules and replay."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Protocol

from autoprune.books import At, Batch, Books, Priced, Spent
from autoprune.errors import LedgerError
from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Constraint, Objective, Proposal, Result
from autoprune.space import Plan, Space


class Searcher(Protocol):
    """Proposes candidates and learns from results; deterministic in (seed, tells).

    One that works at one budget only may say so by `single_target = True`: of several targets each gets a phase. One
    that must measure candidates beyond the constraints, as a sensitivity table does, says `probes = True`: all that it
    proposes is evaluated, and what breaks a constraint is no finalist. One that knows which candidates deserve to be
    finalists has `finalists()`, best first. One whose `ask` follows from seed and tells alone says `memoryless = True`:
    it is replayed by telling only. One that may be asked while earlier batches are still evaluated says how many may
    be `ahead`: it is asked for batch k + ahead as soon as batch k is told, so what it knows never depends on who was
    faster.
    """

    batch: int  # how many proposals the study asks for at a time: a search setting, never the worker count

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to propose."""

    def ask(self, n: int) -> list[Proposal]:
        """0..n proposals with ids counting up; [] and not finished means: tell me more first."""

    def tell(self, results: Sequence[Result]) -> None:
        """All results of the last ask in proposal order, failures too."""


@dataclass(frozen=True)
class Job:
    """A proposal with its decoded plan, on its way to an executor."""

    proposal: Proposal
    plan: Plan


class Executor(Protocol):
    """Runs evaluations, in process or on workers; a context manager."""

    capacity: int

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""

    def results(self, timeout: float | None = None) -> Iterable[Result]:
        """Results of what was submitted, as they come; what is submitted meanwhile is answered here or by the next."""

    def counters(self) -> dict[str, float]:
        """Telemetry since the last call."""


@dataclass(frozen=True)
class Budget:
    """When a phase stops; None means no limit."""

    tokens: int | None = None
    evaluations: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class SupernetSpec:
    """The ladders of a supernet, as plain data: what they hold and behind which plan they are refit.

    `options`: those of each site, by gene name; `reference`: the plan whose sublayers calibration text passes; with
    `follow` they bring its hidden states back towards the dense model's, which is good near that plan only.
    """

    options: Mapping[str, tuple[int, ...]]
    reference: Plan
    follow: bool = False

    def to_json(self) -> str:
        """Canonical JSON."""
        plain = {"options": self.options, "reference": self.reference.to_json(), "follow": self.follow}
        return json.dumps(plain, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> SupernetSpec:
        """Exact inverse of `to_json`."""
        data = json.loads(text)
        options = {str(name): tuple(counts) for name, counts in data["options"].items()}
        return SupernetSpec(options, Plan.from_json(data["reference"]), bool(data["follow"]))


@dataclass(frozen=True)
class Phase:
    """One searcher on one space and one supernet with one budget; `supernet` is None for the run's own."""

    number: int
    space: Space
    searcher: Searcher
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...]
    budget: Budget
    window: int  # tokens a window
    supernet: SupernetSpec | None = None


class Driver(Protocol):
    """Strings phases together."""

    def next(self, ledger: Ledger) -> Phase | None:
        """The next phase, None when done."""


class Watcher(Protocol):
    """Hears of progress."""

    def update(self, tokens: int, evaluations: int, results: Sequence[Result]) -> None:
        """After every batch: totals so far and the batch's results."""


IDLE = 50  # batches in a row that needed no evaluation: nothing new is left


class Study:
    """Runs one phase against a ledger; what the ledger already holds is replayed, not evaluated."""

    def __init__(
        self,
        phase: Phase,
        ledger: Ledger,
        executor: Executor,
        watcher: Watcher | None = None,
        adopted: Mapping[At, Recorded] | None = None,
        known: Mapping[At, Recorded] | None = None,
    ) -> None:
        """`adopted` are evaluations of another run, by plan key and windows: they count, but run nothing.

        `known` are those of earlier phases on the same models: they cost nothing.
        """
        self.phase = phase
        self.ledger = ledger
        self.executor = executor
        self.watcher = watcher
        self._books = Books(phase, dict(adopted or {}), dict(known or {}))
        self._ahead = int(getattr(phase.searcher, "ahead", 1))
        self._stored = ledger.batches(phase.number)
        self._next = 0  # batch
        self._idle = 0
        self._cut: str | None = None  # the budget that ended inside a batch
        self._open: deque[Batch] = deque()
        self._flying: dict[int, tuple[Batch, Priced]] = {}  # by proposal
        self._incoming: Iterator[Result] = iter(())
        self._told = Spent()
        seconds = phase.budget.seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds
        self._closed = time.monotonic()

    def run(self) -> str:
        """Replay, then search until a stop rule holds; returns the rule.

        tokens, evaluations, seconds: what the budget ran out of; finished: the searcher has nothing left to propose;
        exhausted: for many batches in a row every proposal had been evaluated before.
        """
        if self._ahead > 1 and not self._stored:
            self.ledger.event("asynchronous", phase=self.phase.number, ahead=self._ahead)
        while True:
            reason = self._fill()
            if not self._open:
                return reason
            self._close(self._open.popleft())

    def _fill(self) -> str:
        """Open as many batches as the searcher goes ahead; why there are no more."""
        while len(self._open) < self._ahead:
            if (reason := self._stop()) is not None:
                return reason
            proposals = self._asked()
            if not proposals:
                return "finished"
            self._begin(proposals)
            if self._ahead > 1:
                self._poll()
        return ""

    @property
    def _replays(self) -> bool:
        return self._next < len(self._stored)

    def _asked(self) -> list[Proposal]:
        """The next proposals; the ledger's own where a memoryless searcher need not be asked."""
        if not self._replays:
            return self.phase.searcher.ask(self.phase.searcher.batch)
        number, asked = self._stored[self._next]
        memoryless = getattr(self.phase.searcher, "memoryless", False)
        if memoryless and self._next < len(self._stored) - 1:
            return self.ledger.proposals(self.phase.number, number)
        again = self.phase.searcher.ask(asked)
        if not again and not self._open:
            self._check_replay([], number)
        return again

    def _begin(self, proposals: Sequence[Proposal]) -> None:
        """Record a batch, or find that it is recorded, and send off what must be evaluated."""
        items = self._books.priced(proposals)
        offered = items[: self._books.affordable(items)]
        cut = len(offered) < len(items)
        known: dict[int, Recorded] = {}
        if self._replays:
            self._check_replay([i.proposal for i in offered], self._next)
            known = self.ledger.results(self.phase.number, self._next)
        elif offered:
            asked = [i.proposal for i in offered]
            self.ledger.record_batch(self.phase.number, self._next, self.phase.searcher.batch, asked)
        if offered:
            before = self._books.committed.evaluations
            self._send(Batch(self._next, offered, known, cut))
            self._idle = self._idle + 1 if self._books.committed.evaluations == before else 0
            self._next += 1
        if cut:
            self._cut = "evaluations" if self._books.evaluations_left <= 0 else "tokens"

    def _check_replay(self, again: Sequence[Proposal], batch: int) -> None:
        for old, new in zip_longest(self.ledger.proposals(self.phase.number, batch), again):
            if old != new:
                number = min(p.id for p in (old, new) if p is not None)
                raise LedgerError(
                    f"replay of phase {self.phase.number} diverges at proposal {number} (batch {batch}): the searcher "
                    "proposes something else now (a library or setting changed); use resume --fork NEW"
                )

    def _send(self, batch: Batch) -> None:
        """Answer what needs no model, and submit the rest, one job a plan."""
        for item in batch.items:
            if item.proposal.id in batch.known:
                self._books.note(item, batch.known[item.proposal.id])
        jobs = []
        for item in batch.unanswered:
            answer = self._books.cheap(item)
            if answer is not None:
                self._record(batch, answer)
                self._books.note(item, answer)
            elif self._books.commit(item):
                self._flying[item.proposal.id] = (batch, item)
                jobs.append(Job(item.proposal, item.plan))
        batch.waiting, batch.evaluates = len(jobs), bool(jobs)
        self._open.append(batch)
        if jobs:
            self.executor.submit(jobs)

    def _close(self, batch: Batch) -> None:
        """Wait for the results of a batch and tell them, in proposal order."""
        while batch.waiting:
            self._receive()
        if not self._flying:
            for result in self._incoming:
                raise RuntimeError(f"the executor returned proposal {result.proposal.id} twice")
        for item in batch.unanswered:
            self._record(batch, self._books.remembered(item))
        if batch.evaluates:
            seconds = time.monotonic() - max(batch.started, self._closed)
            self.ledger.record_telemetry(
                self.phase.number, batch.number, seconds=seconds, **self.executor.counters()
            )
        self._closed = time.monotonic()
        self._report(batch)
        if not batch.cut:
            self.phase.searcher.tell(batch.results)

    def _receive(self) -> None:
        """Record the next result that comes, whichever batch it belongs to."""
        result = next(self._incoming, None)
        if result is None:
            self._incoming = iter(self.executor.results())
            result = next(self._incoming, None)
        if result is None:
            raise RuntimeError(f"the executor returned no result for proposals {sorted(self._flying)}")
        self._take(result)

    def _poll(self) -> None:
        """Let workers have what is submitted, and take in what they have done, without waiting for more."""
        for result in self.executor.results(timeout=0):
            self._take(result)

    def _take(self, result: Result) -> None:
        batch, item = self._flying.pop(result.proposal.id)
        self._record(batch, self._books.evaluated(item, result))
        batch.waiting -= 1

    def _record(self, batch: Batch, recorded: Recorded) -> None:
        self.ledger.record(self.phase.number, recorded)
        batch.known[recorded.result.proposal.id] = recorded

    def _report(self, batch: Batch) -> None:
        records = batch.known.values()
        runs = sum(r.origin in ("evaluated", "adopted") for r in records)
        self._told.add(sum(r.tokens for r in records), runs)
        if self.watcher is not None:
            self.watcher.update(self._told.tokens, self._told.evaluations, batch.results)

    def _stop(self) -> str | None:
        if self._cut is not None or self._replays:
            return self._cut
        if self.phase.searcher.finished:
            return "finished"
        if self._books.tokens_left <= 0:
            return "tokens"
        if self._books.evaluations_left <= 0:
            return "evaluations"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "seconds"
        return "exhausted" if self._idle >= IDLE else None
