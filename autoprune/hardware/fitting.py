"""The statistics of a latency table: rising curves, a relative line, its held-out error (numpy only)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.errors import MeasurementError


def rising(values: Sequence[float]) -> list[float]:
    """The nearest non-decreasing sequence (least squares): neighbours in the wrong order share their mean."""
    pools: list[tuple[float, int]] = []  # mean, how many
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (right, n), (left, m) = pools.pop(), pools.pop()
            pools.append(((left * m + right * n) / (m + n), m + n))
    return [mean for mean, count in pools for _ in range(count)]


def relative_line(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """(a, b) that minimise the sum of ((a + b * predicted - measured) / measured)^2.

    Raises MeasurementError when the predictions do not tell a line, or it does not rise.
    """
    p, t = np.asarray(predicted, dtype=float), np.asarray(measured, dtype=float)
    if len(p) < 2 or np.ptp(p) <= 1e-9 * np.abs(p).max():
        raise MeasurementError(
            "calibration refused: its plans all cost the same; give plans of several sizes"
        )
    solution = np.linalg.lstsq(np.stack([1 / t, p / t], axis=1), np.ones_like(t), rcond=None)[0]
    a, b = float(solution[0]), float(solution[1])
    if b <= 0:
        raise MeasurementError(
            f"calibration refused: measured times do not rise with predictions (slope {b:.3g})"
        )
    return a, b


def held_out_error(predicted: Sequence[float], measured: Sequence[float]) -> tuple[float, float]:
    """(mean, largest) relative error of each point under the line of all others."""
    errors = []
    for i in range(len(measured)):
        a, b = relative_line(*([v for j, v in enumerate(row) if j != i] for row in (predicted, measured)))
        errors.append(abs(a + b * predicted[i] - measured[i]) / measured[i])
    return float(np.mean(errors)), float(np.max(errors))
