"""What a study knows of proposals: their plans and costs, what was evaluated before, and what they take of a budget."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from autoprune.ledger import Recorded
from autoprune.objective import Fidelity, Proposal, Result, Status
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.study import Phase

At = tuple[str, Fidelity]  # plan key and windows: what an evaluation is remembered under


@dataclass(frozen=True)
class Priced:
    """A proposal with its plan, its costs and the constraint that it breaks, if any."""

    proposal: Proposal
    plan: Plan
    cost: Mapping[str, float]
    broken: str | None

    @property
    def at(self) -> At:
        """What its evaluation is remembered under."""
        return self.plan.key, self.proposal.fidelity


@dataclass
class Batch:
    """Proposals that were asked for together, and what is known of them so far."""

    number: int
    items: Sequence[Priced]
    known: dict[int, Recorded]  # by proposal
    cut: bool  # the budget did not pay for all that the searcher proposed: it is not told
    evaluates: bool = False
    waiting: int = 0  # evaluations in flight
    started: float = field(default_factory=time.monotonic)

    @property
    def results(self) -> list[Result]:
        """Results of all its proposals in order."""
        return [self.known[i.proposal.id].result for i in self.items]

    @property
    def unanswered(self) -> list[Priced]:
        """Proposals without a result."""
        return [i for i in self.items if i.proposal.id not in self.known]


@dataclass
class Spent:
    """Tokens and evaluations."""

    tokens: int = 0
    evaluations: int = 0

    def add(self, tokens: int, evaluations: int) -> None:
        """Count more."""
        self.tokens += tokens
        self.evaluations += evaluations


class Books:
    """Prices proposals, remembers evaluations and counts what is committed: spent already, or in flight."""

    def __init__(self, phase: Phase, adopted: Mapping[At, Recorded], known: Mapping[At, Recorded]) -> None:
        """`adopted`: another run's evaluations, which count; `known`: those of earlier phases, which do not."""
        self._phase, self._adopted = phase, adopted
        self._probes = bool(getattr(phase.searcher, "probes", False))
        self._memory = dict(known)
        self._flying: set[At] = set()
        self.committed = Spent()

    def priced(self, proposals: Iterable[Proposal]) -> list[Priced]:
        """Each with its plan and costs."""
        space, found = self._phase.space, []
        for proposal in proposals:
            cost = space.cost(proposal.candidate)
            found.append(Priced(proposal, space.decode(proposal.candidate), cost, self._broken(cost)))
        return found

    def affordable(self, items: Sequence[Priced]) -> int:
        """How many of them, from the first, the budgets pay for; repeats and misfits are free."""
        tokens, evaluations = self.tokens_left, self.evaluations_left
        seen: set[At] = set()
        for count, item in enumerate(items):
            if item.broken is not None or item.at in seen or self._is_known(item.at):
                continue
            seen.add(item.at)
            tokens -= self.price(item)
            evaluations -= 1
            if tokens < 0 or evaluations < 0:
                return count
        return len(items)

    def price(self, item: Priced) -> int:
        """Fitness tokens of an evaluation."""
        return item.proposal.fidelity.count * self._phase.window

    @property
    def tokens_left(self) -> float:
        """What the budget still pays for."""
        limit = self._phase.budget.tokens
        return float("inf") if limit is None else limit - self.committed.tokens

    @property
    def evaluations_left(self) -> float:
        """What the budget still pays for."""
        limit = self._phase.budget.evaluations
        return float("inf") if limit is None else limit - self.committed.evaluations

    def cheap(self, item: Priced) -> Recorded | None:
        """The result of what needs no model and no wait: a broken constraint, or another run's evaluation."""
        if item.broken is not None:
            result = Result(item.proposal, Status.INFEASIBLE, dict(item.cost), {}, item.broken)
            return Recorded(result, item.plan.key, "constraint", 0)
        source = self._adopted.get(item.at)
        if source is None or self._is_known(item.at):
            return None
        metrics = {**source.result.metrics, **item.cost}  # the other run may have priced otherwise
        result = replace(source.result, proposal=item.proposal, metrics=metrics)
        return Recorded(result, item.plan.key, "adopted", source.tokens)

    def commit(self, item: Priced) -> bool:
        """Count an evaluation that is about to run; False when it runs already or is remembered."""
        if self._is_known(item.at):
            return False
        self._flying.add(item.at)
        self.committed.add(self.price(item), 1)
        return True

    def evaluated(self, item: Priced, result: Result) -> Recorded:
        """The record of an evaluation that was committed."""
        whole = replace(result, metrics={**item.cost, **result.metrics})
        recorded = Recorded(whole, item.plan.key, "evaluated", self.price(item))
        self._flying.discard(item.at)
        self._memory[item.at] = recorded
        return recorded

    def remembered(self, item: Priced) -> Recorded:
        """The record of a proposal whose plan was evaluated on the same windows before."""
        source = self._memory[item.at].result
        result = replace(source, proposal=item.proposal)
        if source.status is Status.OK:  # an earlier phase may have priced otherwise
            result = replace(result, metrics={**source.metrics, **item.cost})
        return Recorded(result, item.plan.key, "memory", 0)

    def note(self, item: Priced, recorded: Recorded) -> None:
        """Count and remember a record that was not committed before."""
        if recorded.origin in ("evaluated", "adopted"):
            self._memory[item.at] = recorded
            self.committed.add(recorded.tokens, 1)

    def _is_known(self, at: At) -> bool:
        return at in self._memory or at in self._flying

    def _broken(self, cost: Mapping[str, float]) -> str | None:
        if self._probes:
            return None
        for constraint in self._phase.constraints:
            if constraint.violation(cost):
                return f"{constraint.metric}={cost[constraint.metric]:.6g} exceeds {constraint.bound:.6g}"
        return None
