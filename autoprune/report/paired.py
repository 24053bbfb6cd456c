"""What a plan loses on items that the dense model was asked too: a mean difference with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEVEL = 0.95
RULE_OF_THREE = 3.0  # n items without a difference: at most 3/n of all differ, at 95 %
ACCURACY = "_acc"  # ending of the metrics that are compared
Items = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Difference:
    """Mean of plan minus dense over the same items, with a 95 % interval."""

    mean: float
    low: float
    high: float
    items: int

    @property
    def verdict(self) -> str:
        """`no measurable loss`, or how large it is."""
        figures = f"{_points(self.mean)} points, 95 % interval {_points(self.low)} to {_points(self.high)}"
        word = "loses" if self.high < 0 else "gains" if self.low > 0 else "no measurable loss"
        return f"{word} ({figures}, {self.items} items)"


def paired(plan: Sequence[float], dense: Sequence[float]) -> Difference:
    """Student's interval of the mean difference; where no item differs, what that many items can exclude."""
    from scipy import stats

    difference = np.asarray(plan, dtype=float) - np.asarray(dense, dtype=float)
    count, mean = len(difference), float(difference.mean())
    if not difference.any():
        half = min(1.0, RULE_OF_THREE / count)
    elif count < 2:
        half = math.inf
    else:
        spread = float(difference.std(ddof=1)) / math.sqrt(count)
        half = float(stats.t.ppf((1 + LEVEL) / 2, count - 1)) * spread
    return Difference(mean, mean - half, mean + half, count)


def by_task(plan: Items, dense: Items) -> dict[str, Difference]:
    """The difference of every accuracy that both have, and of all their items together."""
    names = [n for n in plan if n.endswith(ACCURACY) and n in dense]
    found = {n.removesuffix(ACCURACY): paired(plan[n], dense[n]) for n in names}
    if len(names) > 1:
        everything = [np.concatenate([np.asarray(s[n], dtype=float) for n in names]) for s in (plan, dense)]
        found["all items"] = paired(everything[0].tolist(), everything[1].tolist())
    return found


def pooled(differences: Mapping[str, Difference]) -> Difference | None:
    """The one over all items."""
    return differences.get("all items") or next(iter(differences.values()), None)


def _points(share: float) -> str:
    return f"{100 * share:+.1f}"
