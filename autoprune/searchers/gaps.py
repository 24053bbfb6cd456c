"""Where a front that is done still has room: the budget at which another plan could add most to its volume."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

FINEST = 0.0005  # share of the front's box below which a gap is not worth a budget


@dataclass(frozen=True)
class Held:
    """What a front has at a budget: its bound, and cost and value (both to be small) of the best plan within it."""

    bound: float
    cost: float
    value: float


def halfway(front: Sequence[Held], least: float) -> float | None:
    """The bound halfway into the gap that could add most; None where every gap is too small to matter.

    Between a bound and the cost of the next better plan nothing is known, so plans there could add their distance times
    the difference of values at most. Too small: narrower than `least`, or below a `FINEST` share of the front's box.
    """
    rows = sorted(front, key=lambda h: h.bound)
    box = (rows[-1].cost - rows[0].cost) * (rows[0].value - rows[-1].value)
    gaps = [
        ((high.cost - low.bound) * (low.value - high.value), (low.bound + high.cost) / 2)
        for low, high in itertools.pairwise(rows)
        if high.cost - low.bound > least and high.value < low.value
    ]
    area, bound = max(gaps, default=(0.0, 0.0))
    return bound if area > FINEST * max(box, 0.0) else None
