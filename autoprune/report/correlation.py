"""How well one figure ranks plans by another: rank correlations with an interval over plans."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.objective import Array

LEVEL = 0.95
DRAWS = 400
LEAST = 4  # plans below which a rank correlation says nothing


@dataclass(frozen=True)
class Ranking:
    """Kendall's tau-b with a bootstrap interval over plans, and Spearman's rho."""

    tau: float
    low: float
    high: float
    rho: float
    plans: int

    @property
    def text(self) -> str:
        """`0.45 [0.32, 0.57]`."""
        return f"{self.tau:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def ranking(values: Sequence[float], quality: Sequence[float]) -> Ranking | None:
    """How `values` rank plans by `quality`; None for a constant or for too few plans, which rank nothing."""
    from scipy import stats

    a, b = np.asarray(values, dtype=float), np.asarray(quality, dtype=float)
    if len(a) < LEAST or not np.ptp(a) or not np.ptp(b):
        return None
    rng = np.random.default_rng(0)
    drawn = [_tau(a[at], b[at]) for at in rng.integers(len(a), size=(DRAWS, len(a)))]
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    rho = float(stats.spearmanr(a, b).statistic)
    return Ranking(_tau(a, b), float(low), float(high), rho, len(a))


def _tau(a: Array, b: Array) -> float:
    """Tau-b by signs of all pairs; plans drawn twice tie with themselves. NaN where all tie."""
    x, y = (np.sign(v[:, None] - v).ravel() for v in (a, b))
    norm = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / norm if norm else float("nan")
