"""Global magnitude with a floor: one threshold for the whole model (card B5)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import Tensor

from autoprune.allocation import Allocation
from autoprune.objective import Array
from autoprune.pruning.allocators.base import Ground
from autoprune.shape import full_plan, matrices
from autoprune.space import OptionGene

FLOOR = 0.0005  # of all weights: what every matrix keeps at least, or all of it where it has no more
SAMPLE = 1 << 16  # evenly spaced order statistics that stand for a larger matrix


def global_magnitude(ground: Ground) -> Allocation:
    """Every matrix keeps its share of the largest weights of all matrices; of units, their sublayer's share."""
    sizes, found = dict[str, int](), dict[str, Array]()
    for place, weights in _places(ground):
        ordered = np.sort(np.concatenate([w.double().abs().flatten().cpu().numpy() for w in weights]))
        sizes[place] = len(ordered)
        found[place] = ordered[np.linspace(0, len(ordered) - 1, min(SAMPLE, len(ordered))).astype(int)]
    values = np.concatenate(list(found.values()))
    each = np.concatenate([np.full(len(v), sizes[n] / len(v)) for n, v in found.items()])
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(each[order]) / each.sum()
    floors = {n: min(1.0, FLOOR * each.sum() / size) for n, size in sizes.items()}

    def share(gene: OptionGene, level: float) -> float:
        if not ground.divides(gene) or level >= 1.0:
            return 1.0
        place = _place(gene.block, gene.kind, gene.setting.partition(".")[0] if ground.masks else "")
        threshold = values[min(int(np.searchsorted(below, 1.0 - level)), len(values) - 1)]
        kept = 1.0 - float(np.searchsorted(found[place], threshold)) / len(found[place])
        return max(float(floors[place]), kept)

    return share


def _places(ground: Ground) -> Iterator[tuple[str, list[Tensor]]]:
    """Every matrix or, where the space counts units, all matrices of every sublayer."""
    adapter = ground.adapter
    for at, sublayer in enumerate(full_plan(adapter.shape).sublayers):
        weights, block, kind = adapter.weights(at // 2, sublayer.kind), at // 2, sublayer.kind
        names = list(matrices(adapter.shape, sublayer))
        if ground.masks:
            yield from ((_place(block, kind, name), [weights[name]]) for name in names)
        else:
            yield _place(block, kind), [weights[name] for name in names]


def _place(block: int, kind: str, matrix: str = "") -> str:
    return f"block{block}.{kind}.{matrix}"
