"""Option indices on their way down or up under additive bounds, many random steps at a time (stdlib and numpy only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.objective import Array, Constraint
from autoprune.space import Candidate, CostTable

Ints = NDArray[np.int64]


class Walk:
    """A candidate's values with its constrained costs kept up to date; each constraint has its own table.

    Steps are drawn one gene at a time, as if each were followed by a look at the bounds, but looked at in bulk.
    """

    def __init__(
        self, candidate: Candidate, constraints: Sequence[Constraint], tables: Sequence[CostTable]
    ) -> None:
        self.values: Ints = np.array(candidate.indices(), dtype=np.int64)
        self._constraints = constraints
        self._tables = tables
        self._totals = self._sums()
        slack = [1e-9 * max(1.0, abs(c.bound)) for c in constraints]
        self._limits = np.array([c.bound + s / 2 for c, s in zip(constraints, slack, strict=True)])

    def candidate(self) -> Candidate:
        """Where the walk stands."""
        return Candidate(tuple(self.values.tolist()))

    def lower(self, rng: np.random.Generator) -> None:
        """Lower random genes, one option at a time, until every bound holds or all are at zero.

        Of the genes only those whose next lower option lessens a broken cost, while there are any.
        """
        while self.values.any() and len(broken := self._broken()):
            saved = np.max([self._step(i, self.values) for i in broken], axis=0)
            useful = np.flatnonzero((saved > 0) & (self.values > 0))
            genes, places = _draw(useful if len(useful) else np.flatnonzero(self.values), rng)
            options = self.values[genes] - places
            inside, options = options > 0, np.maximum(options, 0)
            totals = self._totals[broken, None] - np.cumsum(
                [np.where(inside, self._tables[i].steps[genes, options], 0.0) for i in broken], axis=1
            )
            holding = (totals <= self._limits[broken, None]).any(axis=0)
            taken = int(holding.argmax()) + 1 if holding.any() else len(genes)
            self._apply(genes[:taken][inside[:taken]], -1)

    def fill(
        self, highest: Ints, rng: np.random.Generator, goal: tuple[CostTable, float] | None = None
    ) -> None:
        """Raise random genes, one option at a time and none above `highest`, while every bound holds.

        With a goal only until the table's total has reached its value.
        """
        candidates = np.flatnonzero(self.values < highest)
        while len(candidates := self._fitting(candidates, highest)):
            genes, places = _draw(candidates, rng)
            options = self.values[genes] + places + 1
            inside = options <= highest[genes]
            options = np.minimum(options, highest[genes])
            over = np.zeros(len(genes), dtype=bool)
            for total, limit, table in zip(self._totals, self._limits, self._tables, strict=True):
                over |= total + np.cumsum(np.where(inside, table.steps[genes, options], 0.0)) > limit
            taken = int(over.argmax()) if over.any() else len(genes)
            if goal is not None:
                table, wanted = goal
                short = wanted - table.total(self.values)
                if short <= 0:
                    return
                reached = np.cumsum(np.where(inside, table.steps[genes, options], 0.0)) >= short
                taken = min(taken, int(reached.argmax()) + 1) if reached.any() else taken
            self._apply(genes[:taken][inside[:taken]], 1)

    def _fitting(self, genes: Ints, highest: Ints) -> Ints:
        """Those of the genes whose next higher option breaks no bound; the others never will again."""
        genes = genes[self.values[genes] < highest[genes]]
        for total, limit, table in zip(self._totals, self._limits, self._tables, strict=True):
            genes = genes[total + table.steps[genes, self.values[genes] + 1] <= limit]
        return genes

    def _step(self, number: int, options: Ints) -> Array:
        steps = self._tables[number].steps
        return np.asarray(steps[np.arange(len(options)), options])

    def _apply(self, genes: Ints, sign: int) -> None:
        self.values += sign * np.bincount(genes, minlength=len(self.values))
        self._totals = self._sums()

    def _sums(self) -> Array:
        return np.array([table.total(self.values) for table in self._tables])

    def _broken(self) -> Ints:
        pairs = zip(self._constraints, self._totals.tolist(), strict=True)
        return np.flatnonzero([c.violation({c.metric: total}) > 0 for c, total in pairs])


def _draw(genes: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """As many random ones of the genes as there are, and how often each was drawn before its place."""
    drawn = genes[rng.integers(len(genes), size=max(8, len(genes)))]
    order = np.argsort(drawn, kind="stable")
    ordered = drawn[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    lengths = np.diff(np.append(starts, len(ordered)))
    places = np.empty(len(drawn), dtype=np.int64)
    places[order] = np.arange(len(drawn)) - np.repeat(starts, lengths)
    return drawn, places
