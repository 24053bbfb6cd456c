"""Latency targets that are kept: where finalists measured otherwise than predicted, the correction is refitted to them
and a further phase of the same searcher runs on the corrected table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from autoprune.errors import InfeasibleError
from autoprune.ledger import Ledger
from autoprune.objective import Constraint
from autoprune.run.seeds import seed_candidates
from autoprune.run.targets import PHASE, Shared, Target, TargetsDriver
from autoprune.space import Candidate, Space, dense_costs
from autoprune.study import Budget, Phase

KEPT = "kept"  # the ledger's event: finalists of a phase were measured against its targets
BELOW, ABOVE = -0.05, 0.02  # of a target: what measured within is kept
AIM = 0.0  # what is chosen measured no more than this above it: a second measurement differs by a per cent or two
SHARE = 4  # a further phase has this part of the tokens of the phase whose target was missed
STEEPEST = 2.0  # change of the correction's slope in one refit, or its inverse
LATENCIES = ("prefill", "decode")

Correction = Mapping[str, tuple[float, float]]
Reprice = Callable[[Correction], Space]


@dataclass(frozen=True)
class Timed:
    """A finalist: its quality on *selection*, its predicted costs, and what was measured.

    `ratio` to dense and `ms` by metric, each as median, low and high end of its 95 % interval.
    """

    candidate: str
    quality: float
    costs: Mapping[str, float]
    ratio: Mapping[str, Sequence[float]]
    ms: Mapping[str, Sequence[float]]

    def measured(self, bound: Constraint, dense: Mapping[str, float]) -> float:
        """In the units of the bound; of a ratio the ratio counts, for two loops differ in more than the plan."""
        if relative(bound):
            return self.ratio[bound.metric][0] * dense[bound.metric]
        return self.ms[bound.metric][0]


def relative(bound: Constraint) -> bool:
    """Whether the user gave a ratio to dense."""
    return bound.text.endswith("x")


def latencies(target: Target) -> list[Constraint]:
    """The bounds on times."""
    return [c for c in target.constraints if c.metric in LATENCIES]


def off(target: Target, timed: Timed, dense: Mapping[str, float]) -> float:
    """How much the tightest time is above its bound, as a share of it; negative below."""
    return max(timed.measured(c, dense) / c.bound - 1 for c in latencies(target))


def best_of(target: Target, found: Sequence[Timed], dense: Mapping[str, float]) -> Timed | None:
    """Of those that measured no slower than the target the best on *selection*."""
    within = [t for t in found if off(target, t, dense) <= AIM]
    return min(within, key=lambda t: t.quality, default=None)


def missed(target: Target, found: Sequence[Timed], dense: Mapping[str, float]) -> bool:
    """Whether nothing is as fast as a target, or its best is faster than asked for and no other bound says why."""
    if not latencies(target) or not found:
        return False
    best = best_of(target, found, dense)
    if best is None:
        return True
    alone = len(latencies(target)) == len(target.constraints)
    return alone and off(target, best, dense) < BELOW


def refitted(
    correction: Correction, targets: Sequence[Target], found: Sequence[Timed], dense: Mapping[str, float]
) -> dict[str, tuple[float, float]]:
    """The correction (a, b) of every metric with a bound, by least relative squares of what was measured.

    For ratios the line turns around the dense model, whose predicted time bounds are shares of; for milliseconds it is
    scaled. Other metrics keep theirs.
    """
    new = {m: (float(a), float(b)) for m, (a, b) in correction.items()}
    bounds = {c.metric: c for t in targets for c in latencies(t)}
    for metric, bound in bounds.items():
        fixed = dense[metric] if relative(bound) else 0.0
        truth = np.array([t.measured(bound, dense) for t in found])
        told = np.array([t.costs[metric] for t in found])
        u, v = (told - fixed) / truth, (truth - fixed) / truth
        slope = float(u @ v / (u @ u)) if u @ u > 0 else 1.0
        slope = min(max(slope, 1 / STEEPEST), STEEPEST)
        a, b = new[metric]
        new[metric] = fixed * (1 - slope) + slope * a, slope * b
    return new


class KeptDriver(TargetsDriver):
    """The phases of a `TargetsDriver`, then for every target that was missed further ones, `limit` at most.

    What was measured stands in the ledger, so a resumed run goes on from the same numbers.
    """

    def __init__(self, shared: Shared, targets: Sequence[Target], reprice: Reprice, limit: int) -> None:
        super().__init__(shared)
        self._wanted, self._reprice, self.limit = tuple(targets), reprice, limit
        self.dense = dense_costs(shared.space)
        self._spaces: dict[str, Space] = {}

    def next(self, ledger: Ledger) -> Phase | None:
        """The first phase that is not finished, further ones among them."""
        number = len(ledger.events(PHASE))
        if number < self.count:
            return super().next(ledger)
        return self.phase(number, ledger) if number - self.count < len(again(ledger)) else None

    def of(self, slot: int) -> tuple[Target, ...]:
        """The user's targets that one of the first phases searches for."""
        return (self._wanted[slot],) if self.count == len(self._wanted) else self._wanted

    def unmeasured(self, ledger: Ledger) -> dict[int, int]:
        """The last phase of every slot with bounds on times whose finalists are not measured yet, by slot."""
        known = {int(e["phase"]) for e in ledger.events(KEPT)}
        last = self.last(ledger)
        timed = (s for s in last if any(latencies(t) for t in self.of(s)))
        return {s: last[s] for s in timed if last[s] not in known}

    def last(self, ledger: Ledger) -> dict[int, int]:
        """The last phase of every slot: of each of the first phases itself, or the last one that went on from it."""
        found = {slot: slot for slot in range(self.count)}
        return found | {int(e["slot"]): self.count + i for i, e in enumerate(again(ledger))}

    def phase(self, number: int, ledger: Ledger | None = None) -> Phase:
        """A phase by number; a further one starts from the finalists of the one before, made to fit."""
        if number < self.count or ledger is None:
            return super().phase(number, ledger)
        event, shared = again(ledger)[number - self.count], self._shared
        slot, space = int(event["slot"]), self.space(number, ledger)
        target, budget = self.targets[slot], _part(self._share(slot))
        rng = np.random.default_rng([shared.seed, number])
        ranked = sorted(event["found"], key=lambda t: float(t["quality"]))
        best = [Candidate.from_json(str(t["candidate"])) for t in ranked]
        seeds = [space.repair(c, target.constraints, rng) for c in best]
        seeds += seed_candidates(
            space, target.constraints, list(shared.ratios), shared.seed, shared.allocations
        )
        return Phase(
            number=number,
            space=space,
            searcher=self._made(space, target, seeds, budget),
            objectives=shared.objectives,
            constraints=target.constraints,
            budget=budget,
            window=shared.window,
        )

    def rivals(self, ledger: Ledger) -> list[list[tuple[int, ...]]]:
        """Of every target its phases, the last one that has results, priced as it was searched."""
        if not again(ledger):
            return super().rivals(ledger)
        later: dict[int, list[tuple[int, ...]]] = {slot: [(slot,)] for slot in range(self.count)}
        for i, event in enumerate(again(ledger)):
            later[int(event["slot"])].insert(0, (self.count + i,))
        return list(later.values())

    def space(self, number: int, ledger: Ledger) -> Space:
        """Of a further phase the run's space, priced by the refitted correction."""
        if number < self.count:
            return self._shared.space
        return self.priced(correction_of(again(ledger)[number - self.count]))

    def priced(self, correction: Correction) -> Space:
        """The run's space under another correction."""
        name = repr(sorted(correction.items()))
        if name not in self._spaces:
            self._spaces[name] = self._reprice(correction)
        return self._spaces[name]

    def judged(
        self, slot: int, phase: int, found: Sequence[Timed], correction: Correction, ledger: Ledger
    ) -> dict[str, Any]:
        """The event of a phase whose finalists were measured: which targets it missed, and what follows."""
        targets, dense = self.of(slot), self.dense
        wrong = [t.name for t in targets if missed(t, found, dense)]
        new = refitted(correction, targets, found, dense) if wrong else dict(correction)
        rounds = sum(int(e["slot"]) == slot for e in again(ledger))
        return {
            "slot": slot,
            "phase": phase,
            "missed": wrong,
            "found": [asdict(t) for t in found],
            "correction": {m: list(line) for m, line in new.items()},
            "again": bool(wrong) and rounds < self.limit and self._reachable(slot, new),
        }

    def _reachable(self, slot: int, correction: Correction) -> bool:
        """Whether some plan meets the bounds under a correction."""
        space = self.priced(correction)
        bounds = self.targets[slot].constraints
        try:
            nearest = space.repair(space.dense, bounds, np.random.default_rng(0))
        except InfeasibleError:
            return False
        return self.targets[slot].met(space.cost(nearest))


def again(ledger: Ledger) -> list[dict[str, Any]]:
    """The measurements that a further phase follows, in the order of these phases."""
    return [e for e in ledger.events(KEPT) if e["again"]]


def correction_of(event: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    """The refitted correction of a measurement."""
    return {str(m): (float(a), float(b)) for m, (a, b) in event["correction"].items()}


def _part(budget: Budget) -> Budget:
    """What a further phase may spend."""

    def of(whole: int | None) -> int | None:
        return None if whole is None else max(1, whole // SHARE)

    seconds = None if budget.seconds is None else budget.seconds / SHARE
    return replace(budget, tokens=of(budget.tokens), evaluations=of(budget.evaluations), seconds=seconds)
