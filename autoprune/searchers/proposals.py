"""Candidates of least predicted value within additive cost bounds, many at once, near a champion."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.objective import Array, Constraint
from autoprune.space import Candidate, CostTable

HALVINGS = 40
FILLS = 8  # single changes that use up what the multiplier left over

Values = NDArray[np.int64]


class Bounds:
    """Additive costs as one array and what they may be; a price per cost picks one option a gene."""

    def __init__(self, tables: Sequence[CostTable], constraints: Sequence[Constraint], width: int) -> None:
        genes = len(tables[0].entries)
        self.costs = np.full((len(tables), genes, width), np.inf)
        for number, table in enumerate(tables):
            for gene, row in enumerate(table.entries):
                self.costs[number, gene, : len(row)] = row
        slack = np.array([1e-9 * max(1.0, abs(c.bound)) for c in constraints])
        self.room = np.array([c.bound - t.base for c, t in zip(constraints, tables, strict=True)]) + slack
        scale = np.array([max(t.dense - t.base, 1e-300) for t in tables])
        self._relative = np.where(np.isfinite(self.costs), self.costs, 0.0) / scale[:, None, None]

    def tightened(self, less: Array) -> Bounds:
        """The same with every bound [tables] lower by `less`."""
        found = copy.copy(self)
        found.room = self.room - less
        return found

    def fits(self, picked: Values) -> bool:
        """Whether options [genes] hold every bound."""
        return bool((self._total(picked) <= self.room).all())

    def pick(self, values: Array, shares: Array) -> Values | None:
        """Options [genes] of small total value [genes, width] within the bounds; None when none was found.

        Lagrangian relaxation: the least price, split over the costs by `shares`, at which the cheapest options fit;
        then single changes that still fit, best first.
        """
        price = np.tensordot(shares, self._relative, axes=1)  # [genes, width]
        low, high = 0.0, 1.0
        picked = _least(values)
        if self.fits(picked):
            return self._filled(values, picked)
        finite = values[np.isfinite(values)]
        high = 1e3 * max(float(np.ptp(finite)), 1e-9) * values.shape[0]
        found = None
        for _ in range(HALVINGS):
            middle = (low * high) ** 0.5 if low > 0 else high * 1e-9
            picked = _least(values + middle * price)
            if self.fits(picked):
                found, high = picked, middle
            else:
                low = middle
            if low > 0 and high / low < 1 + 1e-6:
                break
        return None if found is None else self._filled(values, found)

    def _filled(self, values: Array, picked: Values) -> Values:
        genes = np.arange(len(picked))
        picked = picked.copy()
        for _ in range(FILLS):
            left = self.room - self._total(picked)
            extra = self.costs - self.costs[:, genes, picked][:, :, None]
            gain = values[genes, picked][:, None] - values
            gain = np.where((extra <= left[:, None, None]).all(axis=0) & np.isfinite(values), gain, -np.inf)
            best = int(np.argmax(gain))
            if gain.flat[best] <= 0:
                break
            gene, option = divmod(best, values.shape[1])
            picked[gene] = option
        return picked

    def _total(self, picked: Values) -> Array:
        total: Array = self.costs[:, np.arange(len(picked)), picked].sum(axis=1)
        return total


def step_values(effects: Array, champion: Candidate, sizes: Values, radius: int, caution: float) -> Array:
    """Value of every option relative to the champion's [genes, width]: its steps' effects, plus `caution` a step.

    effects [genes * (width - 1)]. Infinite beyond `radius` steps and where a gene has no such option.
    """
    width = int(sizes.max())
    at = np.asarray(champion.indices())
    climbed = np.concatenate(
        [np.zeros((len(at), 1)), effects.reshape(len(at), width - 1).cumsum(axis=1)], axis=1
    )
    values = climbed - climbed[np.arange(len(at)), at][:, None]
    steps = np.abs(np.arange(width)[None, :] - at[:, None])
    values = values + caution * steps
    outside = (steps > radius) | (np.arange(width)[None, :] >= sizes[:, None])
    return np.where(outside, np.inf, values)


def kicked(values: Array, blocks: Values, sizes: Values, rng: np.random.Generator) -> Array:
    """Values [genes, width] that leave some blocks a single option a site: all at one share, or each at its own."""
    found, names = values.copy(), np.unique(blocks)
    count = rng.integers(1, max(2, len(names) // 4 + 1))
    together = rng.random() < 0.5
    for block in rng.choice(names, count, replace=False):
        level = rng.random()
        for gene in np.flatnonzero(blocks == block):
            share = level if together else rng.random()
            found[gene] = np.inf
            found[gene, round(share * (sizes[gene] - 1))] = 0.0
    return found


def _least(values: Array) -> Values:
    """The option of least value of each gene; the smaller of equal ones."""
    picked: Values = np.argmin(values, axis=1)
    return picked
