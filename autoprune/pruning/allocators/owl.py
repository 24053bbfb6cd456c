"""OWL: blocks with more outliers keep more (Yin et al., 2024; card B1)."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from autoprune.allocation import Allocation
from autoprune.errors import SettingError
from autoprune.pruning.allocators.base import Ground
from autoprune.pruning.masks.experts import masks_experts
from autoprune.shape import full_plan, matrices
from autoprune.space import OptionGene

SPREAD = 0.08  # lambda: the largest distance of a block from the mean
OUTLIER = 5.0  # M: an outlier is so many times the block's mean


def owl(ground: Ground) -> Allocation:
    """Shares of blocks: level + 2 lambda (D - min D) / (max D - min D) - its mean, D the share of outliers.

    Outliers are entries of |w| |x_j|_2 above M times their block's mean; experts count where they are masked.
    """
    if ground.adapter.shape.experts and not ground.masks:
        raise SettingError("owl needs masks here: in a model with experts it divides weights, not units")
    outliers = [_outliers(ground, block) for block in range(ground.adapter.shape.blocks)]
    low, span = min(outliers), max(outliers) - min(outliers)
    raw = [2 * SPREAD * (d - low) / span if span > 0 else 0.0 for d in outliers]
    offsets = [r - sum(raw) / len(raw) for r in raw]

    def share(gene: OptionGene, level: float) -> float:
        return min(1.0, max(0.0, level + offsets[gene.block])) if ground.divides(gene) else 1.0

    return share


def _outliers(ground: Ground, block: int) -> float:
    found, adapter = [], ground.adapter
    for sublayer in full_plan(adapter.shape).sublayers[:2]:
        weights = adapter.weights(block, sublayer.kind)
        for name in matrices(adapter.shape, sublayer):
            if weights[name].ndim > 2 and not masks_experts(ground.settings):
                continue
            for expert, weight in _each(weights[name]):
                given = block, sublayer.kind, name, adapter.model.device, expert
                norms = ground.statistics.inputs(*given).second.diagonal().sqrt()
                found.append((weight.double().abs() * norms).flatten())
    entries = sum(len(f) for f in found)
    mean = sum(float(f.sum()) for f in found) / entries
    return sum(int((f > OUTLIER * mean).sum()) for f in found) / entries


def _each(weight: Tensor) -> Iterable[tuple[int | None, Tensor]]:
    """A matrix, or those of experts with their indices."""
    return [(None, weight)] if weight.ndim == 2 else enumerate(weight)
