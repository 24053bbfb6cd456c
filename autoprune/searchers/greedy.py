"""Iterative removal (FinerCut, card E1; AxFormer's tolerance, card A11): always the cheapest loss per saved cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.errors import SettingError, UnboundedError
from autoprune.objective import Result
from autoprune.searchers.checks import at_least
from autoprune.searchers.problem import Problem, fill, step_rng
from autoprune.searchers.script import Script, Scripted, Trial
from autoprune.space import Candidate

LEAST = 1e-9  # what a removal is said to lose at least: of several that lose nothing the largest is taken


class Greedy(Scripted):
    """From the dense model on, lowers or removes the site that loses least for what it saves, until the budget is met.

    windows: fitness windows of a step, drawn afresh for every step; step: options that a site is lowered by; remove:
    whether a site may also be removed at once; tolerance: without constraints, how much the objective may exceed
    dense's while anything is removed; confirm: fitness windows on which the last plan and its fills are compared;
    fills: ways in which the room that the last removal leaves is filled.
    """

    batch = 1  # a step is asked for at once
    probes = True  # it comes from above

    def __init__(
        self,
        problem: Problem,
        windows: int = 2,
        step: int = 2,
        remove: bool = True,
        tolerance: float | None = None,
        confirm: int = 16,
        fills: int = 8,
    ) -> None:
        for name, value, least in (("step", step, 1), ("fills", fills, 0)):
            at_least(name, value, least)
        super().__init__(problem)
        problem.sizes("greedy")
        self._quality = problem.quality("greedy")
        problem.fidelity(windows, "search.windows")
        self._confirm = problem.fidelity(confirm, "search.confirm")
        self._check(tolerance)
        self._windows, self._step, self._remove, self._fills = windows, step, remove, fills
        self._tolerance = tolerance
        self._at = problem.space.dense
        self._confirmed: Sequence[Result] = ()

    @property
    def single_target(self) -> bool:
        """With constraints; a tolerance gives one sweep."""
        return bool(self.problem.constraints)

    def finalists(self) -> list[Candidate]:
        """What was confirmed, best first."""
        ranked = sorted((self._quality.value(r.metrics), i) for i, r in enumerate(self._confirmed) if r.ok)
        return [self._confirmed[i].proposal.candidate for _, i in ranked]

    def script(self) -> Script:
        """Removals until the budget is met or nothing is within the tolerance; then the last plan and its fills."""
        step = 0
        while asked := self._asked():
            fidelity = self.problem.drawn(self._windows, step)
            found = self._best(asked, (yield [Trial(c, fidelity) for c in asked]))
            if found is None:
                break
            self._at, step = found, step + 1
        self._confirmed = yield [Trial(c, self._confirm) for c in self._filled()]

    def _asked(self) -> list[Candidate]:
        """The candidate, with a tolerance dense, and every removal that saves something that must be saved."""
        if not self._over() and self.problem.constraints:
            return []
        removals = [c for c in self._removals() if self._saved(c) > 0]
        dense = [self.problem.space.dense] if self._tolerance is not None else []
        return list(dict.fromkeys([self._at, *dense, *removals])) if removals else []

    def _removals(self) -> list[Candidate]:
        found = []
        for gene, value in enumerate(self._at.indices()):
            if value:
                found.append(self._at.with_value(gene, max(0, value - self._step)))
                found += [self._at.with_value(gene, 0)] if self._remove else []
        return list(dict.fromkeys(found))

    def _best(self, asked: Sequence[Candidate], results: Sequence[Result]) -> Candidate | None:
        """The removal of least loss per saved cost; what failed comes last. None when none is within the tolerance."""
        told = {
            r.proposal.candidate: self._quality.value(r.metrics) if r.ok else float("inf") for r in results
        }
        removals = [c for c in asked if c not in (self._at, self.problem.space.dense)]
        if self._tolerance is not None:
            most = told.get(self.problem.space.dense, float("inf")) + self._tolerance
            removals = [c for c in removals if told.get(c, float("inf")) <= most < float("inf")]
        start = told.get(self._at, float("inf"))
        start = start if np.isfinite(start) else 0.0
        losses = {c: max(told.get(c, float("inf")) - start, LEAST) for c in removals}
        return min(removals, key=lambda c: (losses[c] / self._saved(c), -self._saved(c)), default=None)

    def _over(self) -> list[tuple[str, float]]:
        """By how much each broken constraint is exceeded."""
        cost = self.problem.space.cost(self._at)
        return [(c.metric, c.violation(cost)) for c in self.problem.constraints if c.violation(cost)]

    def _saved(self, candidate: Candidate) -> float:
        """Share of what is still over, summed over the broken constraints; without any the plain cost."""
        before, after = self.problem.space.cost(self._at), self.problem.space.cost(candidate)
        if self.problem.constraints:
            return sum(min(1.0, (before[m] - after[m]) / over) for m, over in self._over())
        return before[self._metric] - after[self._metric]

    def _filled(self) -> list[Candidate]:
        """The last candidate and what its room can be filled with."""
        found = {self._at: None}
        for number in range(self._fills if self.problem.constraints else 0):
            rng = step_rng(self.problem.seed, number)
            genes = range(len(self._at.values))
            found.setdefault(fill(self.problem.space, self._at, genes, self.problem.constraints, rng))
        return list(found)

    def _check(self, tolerance: float | None) -> None:
        bounded = bool(self.problem.constraints)
        if bounded == (tolerance is not None):
            said = "only without constraints" if bounded else "or constraints, for example '{params: 0.6x}'"
            error = SettingError if bounded else UnboundedError
            raise error(f"search.tolerance={tolerance}: search=greedy takes a tolerance {said}")
        at_least("tolerance", tolerance, 0, null=True)
        costs = [o.metric for o in self.problem.objectives if o != self._quality]
        self._metric = costs[0] if costs else "params"
