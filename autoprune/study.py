"""The one loop of a phase: ask, record, execute, record, tell; budgets, stop rules and replay."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Protocol

from autoprune.errors import LedgerError
from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Constraint, Fidelity, Objective, Proposal, Result, Status
from autoprune.space import Plan, Space


class Searcher(Protocol):
    """Proposes candidates and learns from results; deterministic in (seed, tells).

    One that works at one budget only may say so by `single_target = True`: of several targets each gets a phase. One
    that must measure candidates beyond the constraints, as a sensitivity table does, says `probes = True`: all that it
    proposes is evaluated, and what breaks a constraint is no finalist. One that knows which candidates deserve to be
    finalists has `finalists()`, best first. One whose `ask` follows from seed and tells alone says `memoryless = True`:
    it is replayed by telling only.
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
        """Results of what was submitted, as they come."""

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


@dataclass
class _Spent:
    tokens: int = 0
    evaluations: int = 0
    idle: int = 0


class Study:
    """Runs one phase against a ledger; what the ledger already holds is replayed, not evaluated."""

    def __init__(
        self,
        phase: Phase,
        ledger: Ledger,
        executor: Executor,
        watcher: Watcher | None = None,
        adopted: Mapping[tuple[str, Fidelity], Recorded] | None = None,
        known: Mapping[tuple[str, Fidelity], Recorded] | None = None,
    ) -> None:
        """`adopted` are evaluations of another run, by plan key and windows: they count, but run nothing.

        `known` are those of earlier phases on the same models: they cost nothing.
        """
        self.phase = phase
        self._adopted = dict(adopted or {})
        self.ledger = ledger
        self.executor = executor
        self.watcher = watcher
        self._memory: dict[tuple[str, Fidelity], Recorded] = dict(known or {})
        self._spent = _Spent()
        seconds = phase.budget.seconds
        self._deadline = None if seconds is None else time.monotonic() + seconds

    def run(self) -> str:
        """Replay, then search until a stop rule holds; returns the rule.

        tokens, evaluations, seconds: what the budget ran out of; finished: the searcher has nothing left to propose;
        exhausted: for many batches in a row every proposal had been evaluated before.
        """
        batch, cut = self._replay()
        if cut:  # the budget ended inside the last recorded batch
            return self._cut_by()
        while (reason := self._stop()) is None:
            proposals = self.phase.searcher.ask(self.phase.searcher.batch)
            if not proposals:
                return "finished"
            offered = self._affordable(proposals)
            if offered:
                self.ledger.record_batch(self.phase.number, batch, self.phase.searcher.batch, offered)
                results = self._complete(batch, offered, {})
            if len(offered) < len(proposals):
                return self._cut_by()
            self.phase.searcher.tell(results)
            batch += 1
        return reason

    def _replay(self) -> tuple[int, bool]:
        """Ask and tell again what the ledger holds; finish a batch that a crash cut off.

        A memoryless searcher is told all and asked for the last batch only, as a check. Returns the next batch
        number, and whether the budget had cut the last batch short.
        """
        following, cut = 0, False
        batches = self.ledger.batches(self.phase.number)
        memoryless = getattr(self.phase.searcher, "memoryless", False)
        for number, asked in batches:
            again = recorded = self.ledger.proposals(self.phase.number, number)
            if not memoryless or number == batches[-1][0]:
                again = self.phase.searcher.ask(asked)
                self._check_replay(recorded, self._affordable(again), number)
            results = self._complete(number, recorded, self.ledger.results(self.phase.number, number))
            cut = len(recorded) < len(again)
            if not cut:
                self.phase.searcher.tell(results)
            following = number + 1
        return following, cut

    def _check_replay(self, recorded: Sequence[Proposal], again: Sequence[Proposal], batch: int) -> None:
        for old, new in zip_longest(recorded, again):
            if old != new:
                number = min(p.id for p in (old, new) if p is not None)
                raise LedgerError(
                    f"replay of phase {self.phase.number} diverges at proposal {number} (batch {batch}): the searcher "
                    "proposes something else now (a library or setting changed); use resume --fork NEW"
                )

    def _complete(
        self, batch: int, proposals: Sequence[Proposal], known: dict[int, Recorded]
    ) -> list[Result]:
        """Results of all proposals in order, evaluating and recording those not in `known`."""
        started, before = time.monotonic(), self._spent.evaluations
        plans = [self.phase.space.decode(p.candidate) for p in proposals]
        for proposal, plan in zip(proposals, plans, strict=True):
            if proposal.id in known:
                self._note(plan, known[proposal.id])
        missing = [(p, plan) for p, plan in zip(proposals, plans, strict=True) if p.id not in known]
        jobs = self._answer_cheap(missing, known)
        self._execute(jobs, known)
        self._answer_repeats(missing, known)
        if jobs:
            counters = {"seconds": time.monotonic() - started, **self.executor.counters()}
            self.ledger.record_telemetry(self.phase.number, batch, **counters)
        self._spent.idle = self._spent.idle + 1 if self._spent.evaluations == before else 0
        results = [known[p.id].result for p in proposals]
        if self.watcher is not None:
            self.watcher.update(self._spent.tokens, self._spent.evaluations, results)
        return results

    def _answer_cheap(
        self, missing: Sequence[tuple[Proposal, Plan]], known: dict[int, Recorded]
    ) -> list[Job]:
        """Record constraint violations and remembered plans; return the jobs that need a model, one per plan."""
        jobs: list[Job] = []
        taken: set[tuple[str, Fidelity]] = set()
        for proposal, plan in missing:
            broken = self._broken(proposal)
            at = (plan.key, proposal.fidelity)
            if broken is not None:
                result = Result(proposal, Status.INFEASIBLE, self._costs(proposal), {}, broken)
                self._record(plan, result, "constraint", 0, known)
            elif at in self._adopted and at not in self._memory:
                source = self._adopted[at]
                metrics = {
                    **source.result.metrics,
                    **self._costs(proposal),
                }  # the other run may have priced otherwise
                result = replace(source.result, proposal=proposal, metrics=metrics)
                self._record(plan, result, "adopted", source.tokens, known)
            elif at not in self._memory and at not in taken:
                taken.add(at)
                jobs.append(Job(proposal, plan))
        return jobs

    def _execute(self, jobs: Sequence[Job], known: dict[int, Recorded]) -> None:
        open_jobs = {job.proposal.id: job for job in jobs}
        self.executor.submit(jobs)
        for result in self.executor.results():
            job = open_jobs.pop(result.proposal.id)
            tokens = job.proposal.fidelity.count * self.phase.window
            self._record(job.plan, self._with_costs(result), "evaluated", tokens, known)
        if open_jobs:
            raise RuntimeError(f"the executor returned no result for proposals {sorted(open_jobs)}")

    def _answer_repeats(self, missing: Sequence[tuple[Proposal, Plan]], known: dict[int, Recorded]) -> None:
        for proposal, plan in missing:
            if proposal.id not in known:
                source = self._memory[plan.key, proposal.fidelity].result
                result = replace(source, proposal=proposal)
                if source.status is Status.OK:  # an earlier phase may have priced otherwise
                    result = replace(result, metrics={**source.metrics, **self._costs(proposal)})
                self._record(plan, result, "memory", 0, known)

    def _record(
        self, plan: Plan, result: Result, origin: str, tokens: int, known: dict[int, Recorded]
    ) -> None:
        recorded = Recorded(result, plan.key, origin, tokens)
        self.ledger.record(self.phase.number, recorded)
        known[result.proposal.id] = recorded
        self._note(plan, recorded)

    def _note(self, plan: Plan, recorded: Recorded) -> None:
        self._spent.tokens += recorded.tokens
        if recorded.origin in ("evaluated", "adopted"):
            self._spent.evaluations += 1
            self._memory[plan.key, recorded.result.proposal.fidelity] = recorded

    def _broken(self, proposal: Proposal) -> str | None:
        if getattr(self.phase.searcher, "probes", False):
            return None
        cost = self.phase.space.cost(proposal.candidate)
        for constraint in self.phase.constraints:
            if constraint.violation(cost):
                return f"{constraint.metric}={cost[constraint.metric]:.6g} exceeds {constraint.bound:.6g}"
        return None

    def _costs(self, proposal: Proposal) -> dict[str, float]:
        return dict(self.phase.space.cost(proposal.candidate))

    def _with_costs(self, result: Result) -> Result:
        return replace(result, metrics={**self._costs(result.proposal), **result.metrics})

    def _stop(self) -> str | None:
        if self.phase.searcher.finished:
            return "finished"
        if self.phase.budget.tokens is not None and self._spent.tokens >= self.phase.budget.tokens:
            return "tokens"
        if self._evaluations_left() <= 0:
            return "evaluations"
        if self._deadline is not None and time.monotonic() >= self._deadline:
            return "seconds"
        return "exhausted" if self._spent.idle >= IDLE else None

    def _cut_by(self) -> str:
        return "evaluations" if self._evaluations_left() <= 0 else "tokens"

    def _evaluations_left(self) -> float:
        limit = self.phase.budget.evaluations
        return float("inf") if limit is None else limit - self._spent.evaluations

    def _affordable(self, proposals: Sequence[Proposal]) -> list[Proposal]:
        """The longest prefix that the token and evaluation budgets pay for, repeats and misfits being free."""
        limit = self.phase.budget.tokens
        tokens = float("inf") if limit is None else limit - self._spent.tokens
        evaluations = self._evaluations_left()
        seen = set(self._memory)
        for count, proposal in enumerate(proposals):
            at = (self.phase.space.decode(proposal.candidate).key, proposal.fidelity)
            if at in seen or self._broken(proposal) is not None:
                continue
            seen.add(at)
            tokens -= proposal.fidelity.count * self.phase.window
            evaluations -= 1
            if tokens < 0 or evaluations < 0:
                return list(proposals[:count])
        return list(proposals)
