"""STUN's division (card D3): experts whose router rows are alike leave first, then weights of what stays."""

from __future__ import annotations

import numpy as np

from autoprune.allocation import Allocation
from autoprune.errors import SettingError
from autoprune.pruning.allocators.base import Ground
from autoprune.pruning.allocators.owl import owl
from autoprune.pruning.criteria.experts.clusters import joins
from autoprune.space import OptionGene


def stun(ground: Ground) -> Allocation:
    """One distance for all blocks: experts nearer to each other than it are one cluster, which keeps one expert.

    Blocks whose experts are alike so keep fewer. A block keeps at least as many as a token uses. Where the space has
    masks or units beside experts, experts and these keep the same share each: the weights of what stays, those of
    experts among them, by OWL; units alike everywhere.
    """
    shape = ground.adapter.shape
    if not shape.experts or "experts" not in ground.settings:
        raise SettingError(
            "stun needs experts among what the space changes: a model with experts, space=[experts]"
        )
    heights = [
        np.array([join.distance for join in joins(ground.adapter.weights(block, "ffn"))])
        for block in range(shape.blocks)
    ]
    every = np.sort(np.concatenate(heights))
    least = shape.experts_per_token / shape.experts
    inner = owl(ground) if ground.masks else _alike(ground)
    alone = not any(n != "experts" and ground.divides(OptionGene(0, "ffn", n, (0,))) for n in ground.settings)

    def share(gene: OptionGene, level: float) -> float:
        level = level if alone else level**0.5
        if gene.setting != "experts":
            return inner(gene, level)
        leave = min(round((1.0 - level) * shape.blocks * shape.experts), len(every))
        joined = 0 if leave == 0 else int((heights[gene.block] <= every[leave - 1]).sum())
        return max(least, 1.0 - joined / shape.experts)

    return share


def _alike(ground: Ground) -> Allocation:
    return lambda gene, level: level if ground.divides(gene) else 1.0
