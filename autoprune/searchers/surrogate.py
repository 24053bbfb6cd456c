"""A linear model of what each option step does to quality, learnt from paired gaps of all budgets alike.

A candidate is coded by the steps it has climbed at every site; the gap between two candidates is the sum of the steps
in which they differ. Sums of single steps rank sets of moves well and miss their size by half, so what the model says
is used to choose what to measure, and as a belief that measurements soon outweigh; never as a result. Bayesian ridge
regression in its dual form, with draws by Matheron's rule: cost grows with the measurements used, not with the space.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.objective import Array
from autoprune.searchers.race import Belief
from autoprune.space import Candidate

ROWS = 512  # measurements that a posterior uses: the closest in steps, and of these the latest
FIRST = 0.05**2  # variance of a gap before any was measured
SMALLEST = 1e-12
MISFIT = 0.16  # least share of the noise that is put down to what steps do not explain
FADING = 0.8  # what an older round weighs against the next


Values = NDArray[np.int16]  # option indices: codes would take many times the room


class StepModel:
    """Gaps between candidates as sums of option steps; `reach`: steps at which a measurement counts 1/e as much."""

    def __init__(self, sizes: Sequence[int], reach: float) -> None:
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.width = int(self.sizes.max())
        self._reach = reach
        self._known: dict[tuple[Candidate, Candidate], tuple[Values, Values, float, float]] = {}

    def code(self, candidate: Candidate) -> Array:
        """Steps climbed, 0 or 1: [genes * (width - 1)]."""
        values = np.asarray(candidate.indices())
        return (np.arange(self.width - 1)[None, :] < values[:, None]).astype(float).ravel()

    def learn(self, champion: Candidate, contender: Candidate, gap: float, variance: float) -> None:
        """Take in a measured gap of contender to champion and its variance; it replaces an earlier one of the pair."""
        self._known.pop((champion, contender), None)
        self._known[champion, contender] = (_values(champion), _values(contender), gap, variance)

    def forget(self, champion: Candidate) -> None:
        """Drop what was measured against any other champion."""
        self._known = {pair: row for pair, row in self._known.items() if pair[0] == champion}

    def posterior(self, champion: Candidate, mean: Array, sd: Array, misfit: float) -> Posterior:
        """What is known around a champion, from step means and deviations [genes * (width - 1)] known before.

        `misfit` is the variance of a gap that no sum of steps explains.
        """
        if not self._known:
            none = np.zeros((0, len(mean)))
            return Posterior(mean, sd, none, np.zeros(0), np.zeros(0))
        at, to, gaps, variances = (np.array(part) for part in zip(*self._known.values(), strict=True))
        distance = (
            np.abs(at - _values(champion)).sum(axis=1).astype(float)
        )  # in steps, as the codes' would be
        used = np.sort(len(distance) - 1 - np.argsort(distance[::-1], kind="stable")[:ROWS])
        weighted = (variances[used] + misfit) * np.exp(distance[used] / self._reach)
        return Posterior(mean, sd, self._codes(to[used]) - self._codes(at[used]), gaps[used], weighted)

    def _codes(self, values: Values) -> Array:
        """As `code`, of many candidates [n, genes]."""
        climbed = np.arange(self.width - 1)[None, None, :] < values[:, :, None]
        return climbed.astype(float).reshape(len(values), -1)


class Spread:
    """Variances estimated as the search goes on: of a gap on one window, and of what no sum of steps explains."""

    def __init__(self) -> None:
        self._within = [0.0, 0.0]  # sum of squares, degrees of freedom; older ones fade
        self._beyond = [0.0, 0.0]

    @property
    def noise(self) -> float:
        """Variance of a gap on one window."""
        squares, freedom = self._within
        return max(squares / freedom, SMALLEST) if freedom else FIRST

    @property
    def misfit(self) -> float:
        """Variance of a gap that steps do not explain: at least a share of the noise."""
        squares, count = self._beyond
        return max(squares / count if count else 0.0, MISFIT * self.noise)

    def gaps(self, measured: Sequence[Array]) -> None:
        """Take in the gaps of several pairs, each over its windows."""
        several = [g for g in measured if len(g) > 1]
        if several:
            squares = sum(float(((g - g.mean()) ** 2).sum()) for g in several)
            self._within = [
                FADING * self._within[0] + squares,
                FADING * self._within[1] + sum(map(len, several)) - len(several),
            ]

    def residuals(self, misses: Sequence[float], variances: Sequence[float]) -> None:
        """Take in how far a round's measured gaps lay from what was expected, with the variances of measuring them."""
        squares = sum(m**2 - v for m, v in zip(misses, variances, strict=True))
        self._beyond = [FADING * self._beyond[0] + squares, FADING * self._beyond[1] + len(misses)]


@dataclass
class Posterior:
    """Step effects given measurements: mean and sd [S] before, rows [n, S], gaps [n] and their variances [n]."""

    mean: Array
    sd: Array
    rows: Array
    gaps: Array
    variances: Array

    def __post_init__(self) -> None:
        spread = self.rows * self.sd**2
        inner = spread @ self.rows.T + np.diag(self.variances)
        self._spread = spread
        self._inverse = np.linalg.inv(inner) if len(inner) else inner
        self.best = self._given(self.mean, self.gaps)

    def draw(self, rng: np.random.Generator, count: int) -> Array:
        """Step effects drawn from the posterior: [count, S]."""
        before = self.mean + self.sd * rng.standard_normal((count, len(self.mean)))
        noise = np.sqrt(self.variances) * rng.standard_normal((count, len(self.gaps)))
        return self._given(before, self.gaps + noise)

    def beliefs(self, steps: Array, misfit: float) -> list[Belief]:
        """What is expected of contenders whose steps differ from the champion's by `steps` [m, S]."""
        gaps = steps @ self.best
        cross = steps @ self._spread.T  # [m, n]
        variances = (steps**2) @ self.sd**2 - np.einsum("mn,nk,mk->m", cross, self._inverse, cross)
        return [Belief(float(g), max(float(v), 0.0) + misfit) for g, v in zip(gaps, variances, strict=True)]

    def _given(self, effects: Array, gaps: Array) -> Array:
        found: Array = effects + (gaps - effects @ self.rows.T) @ self._inverse @ self._spread
        return found


def _values(candidate: Candidate) -> Values:
    return np.array(candidate.indices(), dtype=np.int16)
