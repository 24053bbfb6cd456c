"""The volume a front dominates, through pymoo."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.errors import SettingError


def hypervolume(points: Sequence[Sequence[float]], reference: Sequence[float]) -> float:
    """Volume between the points (minimised) and the reference; points not better than it in all add nothing."""
    bound = np.asarray(reference, dtype=float)
    array = (
        np.asarray(points, dtype=float).reshape(len(points), -1) if len(points) else np.empty((0, bound.size))
    )
    if array.shape[1] != bound.size:
        raise SettingError(f"hypervolume reference has {bound.size} values, the points have {array.shape[1]}")
    if np.isnan(array).any() or not np.isfinite(bound).all():
        raise SettingError(
            "hypervolume points and reference must be numbers; leave out what was not measured"
        )
    array = array[(array < bound).all(axis=1)]
    if not len(array):
        return 0.0
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=bound)(array))
