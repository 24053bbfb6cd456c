"""How far two rankings of the same plans agree: Kendall's tau with a bootstrap interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

LOW = 0.3  # below it a ranking is of little use; a choice of this project, not a test of significance
LEVEL = 0.95
RESAMPLES = 1000
SEED = 0


@dataclass(frozen=True)
class Tau:
    """Kendall's tau-b of two rankings, and the interval of it over plans drawn again."""

    value: float
    low: float
    high: float
    plans: int

    @property
    def text(self) -> str:
        """The figure in words."""
        return (
            f"Kendall tau {self.value:.2f}, {LEVEL:.0%} interval {self.low:.2f} to {self.high:.2f} "
            f"({self.plans} plans)"
        ).replace("%", " %")

    @property
    def warning(self) -> str | None:
        """What to think of it, None when all of the interval lies at or above `LOW`."""
        if self.value < LOW:
            return f"warning: tau is below {LOW}: this fitness says little about plans after recovery"
        if self.low < LOW:
            return f"note: the interval reaches below {LOW}; more plans would tell"
        return None


def kendall(first: Sequence[float], second: Sequence[float]) -> Tau:
    """Tau-b and its percentile bootstrap over pairs; resamples of one plan only, which have no tau, are left out.

    Where one side has a single value no ranking agrees with it: tau is 0.
    """
    from scipy.stats import kendalltau

    a, b = np.asarray(first, dtype=float), np.asarray(second, dtype=float)
    if min(len(set(a)), len(set(b))) < 2:
        return Tau(0.0, -1.0, 1.0, len(a))
    draws = np.random.default_rng(SEED).integers(len(a), size=(RESAMPLES, len(a)))
    taus = np.array([kendalltau(a[d], b[d]).statistic for d in draws if len(set(a[d])) > 1])
    low, high = np.nanquantile(taus, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Tau(float(kendalltau(a, b).statistic), float(low), float(high), len(a))
