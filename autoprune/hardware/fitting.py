"""The statistics of a latency table: additive parts, a relative line, its held-out error (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import MeasurementError

Array = NDArray[np.float64]
RIDGE = 1e-6  # of the weight of one measurement
STIFF = (
    1e-3  # the slope of a correction is 1 +- 0.3, its measurements are good to a hundredth: (0.01 / 0.3)^2
)


def additive(
    amounts: Sequence[Sequence[float]],
    measured: Sequence[float],
    after: Sequence[bool] | None = None,
    signed: Sequence[bool] | None = None,
) -> list[float]:
    """Parts x that minimise the sum of ((amounts @ x - measured) / measured)^2.

    amounts [n, p]: how much of each part there is in each measured thing; a part that occurs nowhere is 0. Parts are
    at least 0, or the part before them where `after`, unless `signed`.
    """
    from scipy.optimize import lsq_linear

    t, whole = np.asarray(measured, dtype=float), np.asarray(amounts, dtype=float)
    count = whole.shape[1]
    follows, free = (np.asarray([False] * count if v is None else v) for v in (after, signed))
    steps = np.eye(count)  # a part is the sum of the steps up to it
    for j in np.flatnonzero(follows):
        steps[j] += steps[j - 1]
    rows = whole @ steps / t[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), 1e-12)
    weak = np.sqrt(RIDGE * len(t)) * np.eye(count)  # decides what the measurements do not
    low = np.where(free & ~follows, -np.inf, 0.0)
    system, target = np.vstack([rows / scale, weak]), np.concatenate([np.ones_like(t), np.zeros(count)])
    solution = np.maximum(lsq_linear(system, target, (low, np.inf), method="bvls").x, low)  # but for rounding
    found = np.where(np.abs(rows).max(axis=0) > 0, solution / scale, 0.0)
    return [float(value) for value in steps @ found]


def relative_line(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """(a, b) that minimise the sum of ((a + b * predicted - measured) / measured)^2, b near 1 where they tell nothing.

    Plans that all cost about the same say how much, not how it rises. Raises MeasurementError when it does not rise.
    """
    p, t = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    rows = np.vstack([np.stack([1 / t, p / t], axis=1), [0.0, np.sqrt(STIFF)]])
    solution = np.linalg.lstsq(rows, np.append(np.ones_like(t), np.sqrt(STIFF)), rcond=None)[0]
    a, b = float(solution[0]), float(solution[1])
    if b <= 0:
        raise MeasurementError(
            f"calibration refused: measured times do not rise with predictions (slope {b:.3g})"
        )
    return a, b


@dataclass(frozen=True)
class HeldOut:
    """How predictions of one metric fared on plans that nothing was fitted to; errors relative to the measured."""

    plans: int
    mean: float
    largest: float
    rank: float  # Spearman's correlation
    spread: float = (
        0.0  # of the measured times, the largest over the smallest less 1; ranks of like times say little
    )


def held_out(predicted: Sequence[float], measured: Sequence[float]) -> HeldOut:
    """Compare predictions with measurements."""
    p, t = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    errors = np.abs(p - t) / t
    spread = float(t.max() / t.min() - 1)
    return HeldOut(len(t), float(errors.mean()), float(errors.max()), _spearman(p, t), spread)


def _spearman(a: Array, b: Array) -> float:
    """Correlation of the ranks; 0 where one of the two does not vary."""
    ranks = [np.argsort(np.argsort(v, kind="stable")).astype(float) for v in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1]) if min(np.ptp(a), np.ptp(b)) > 0 else 0.0
