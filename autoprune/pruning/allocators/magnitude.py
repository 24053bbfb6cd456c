"""Global magnitude with a floor: one threshold for the whole model (card B5)."""

from __future__ import annotations

import numpy as np

from autoprune.allocation import Allocation
from autoprune.models.base import Adapter
from autoprune.objective import Array
from autoprune.shape import full_plan, matrices
from autoprune.space import OptionGene, is_mask

FLOOR = 0.0005  # of all weights: what every matrix keeps at least, or all of it where it has no more
SAMPLE = 1 << 16  # evenly spaced order statistics that stand for a larger matrix


def global_magnitude(adapter: Adapter) -> Allocation:
    """Every matrix keeps its share of the largest weights of all matrices. Units stay whole."""
    sizes, found = dict[str, int](), dict[str, Array]()
    for at, sublayer in enumerate(full_plan(adapter.shape).sublayers):
        weights = adapter.weights(at // 2, sublayer.kind)
        for name in matrices(adapter.shape, sublayer):
            place = f"block{at // 2}.{sublayer.kind}.{name}"
            ordered = np.sort(weights[name].double().abs().flatten().numpy())
            sizes[place] = len(ordered)
            found[place] = ordered[np.linspace(0, len(ordered) - 1, min(SAMPLE, len(ordered))).astype(int)]
    values = np.concatenate(list(found.values()))
    each = np.concatenate([np.full(len(v), sizes[n] / len(v)) for n, v in found.items()])
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(each[order]) / each.sum()
    floors = {n: min(1.0, FLOOR * each.sum() / size) for n, size in sizes.items()}

    def share(gene: OptionGene, level: float) -> float:
        if not is_mask(gene.setting):
            return 1.0
        place = f"block{gene.block}.{gene.kind}.{gene.setting.partition('.')[0]}"
        if level >= 1.0:
            return 1.0
        threshold = values[min(int(np.searchsorted(below, 1.0 - level)), len(values) - 1)]
        kept = 1.0 - float(np.searchsorted(found[place], threshold)) / len(found[place])
        return max(float(floors[place]), kept)

    return share
