"""NIRVANA's division between KV groups and neurons (card C2)."""

from __future__ import annotations

from autoprune.allocation import Allocation
from autoprune.shape import Shape
from autoprune.space import OptionGene, is_mask

GAMMA = 3.36  # so many times the share of KV groups is cut from the neurons


def nirvana_split(shape: Shape, gamma: float = GAMMA) -> Allocation:
    """At a level of 1 - s: neurons lose s (A + M) / (A / gamma + M), KV groups 1 / gamma of that share.

    A and M are the weights of attention and FFN for each hidden unit. Masks stay whole.
    """
    attention = 2 * shape.head_dim * (shape.heads_per_group + 1) * shape.kv_groups
    ffn = (3 if shape.gated else 2) * shape.ffn

    def share(gene: OptionGene, level: float) -> float:
        if is_mask(gene.setting):
            return 1.0
        cut = (1.0 - level) * (attention + ffn) / (attention / gamma + ffn)
        return max(0.0, 1.0 - (cut if gene.kind == "ffn" else cut / gamma))

    return share
