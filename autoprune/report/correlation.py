"""How well one figure ranks plans by another: rank correlations with a bootstrap interval over plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.objective import Array

LEVEL = 0.95
DRAWS = 1000
MANY = 400  # draws for each of many figures
LEAST = 4  # plans below which a rank correlation says nothing


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b of two rankings, the interval of it over plans drawn again, and Spearman's rho."""

    value: float
    low: float
    high: float
    plans: int
    rho: float = 0.0

    @property
    def text(self) -> str:
        """The figure in words."""
        interval = f"{100 * LEVEL:.0f} % interval {self.low:.2f} to {self.high:.2f}"
        return f"Kendall tau {self.value:.2f}, {interval} ({self.plans} plans)"

    @property
    def cell(self) -> str:
        """`+0.45 [+0.32, +0.57]`."""
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def kendall(first: Sequence[float], second: Sequence[float], draws: int = DRAWS) -> Tau:
    """Tau-b and its percentile bootstrap over pairs; resamples that tie throughout, which have no tau, are left out.

    Where one side has a single value no ranking agrees with it: tau is 0.
    """
    from scipy.stats import spearmanr

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if not _ranks(a, b):
        return Tau(0.0, -1.0, 1.0, len(a))
    rows = np.random.default_rng(0).integers(len(a), size=(draws, len(a)))
    low, high = np.nanquantile([_tau(a[at], b[at]) for at in rows], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Tau(_tau(a, b), float(low), float(high), len(a), float(spearmanr(a, b).statistic))


def ranking(values: Sequence[float], quality: Sequence[float]) -> Tau | None:
    """How `values` rank plans by `quality`; None for a constant or for too few plans, which rank nothing."""
    a, b = np.asarray(values, dtype=float), np.asarray(quality, dtype=float)
    return kendall(values, quality, MANY) if len(a) >= LEAST and _ranks(a, b) else None


def _ranks(a: Array, b: Array) -> bool:
    return min(len(set(a)), len(set(b))) > 1


def _tau(a: Array, b: Array) -> float:
    """Tau-b by signs of all pairs; plans drawn twice tie with themselves. NaN where all tie."""
    x, y = (np.sign(v[:, None] - v).ravel() for v in (a, b))
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else float("nan")
