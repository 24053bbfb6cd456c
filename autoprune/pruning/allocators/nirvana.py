"""NIRVANA's division between attention and neurons (card C2)."""

from __future__ import annotations

from autoprune.allocation import Allocation
from autoprune.errors import SettingError
from autoprune.pruning.allocators.base import Ground
from autoprune.shape import Shape
from autoprune.space import OptionGene, is_mask

GAMMA = 3.36  # so many times the share of KV groups is cut from the neurons
SPLIT = ("kv_groups", "width")


def nirvana(ground: Ground) -> Allocation:
    """The published division of units; in a space without units, of the weights of attention and FFN alike."""
    shape = ground.adapter.shape
    if shape.experts:
        raise SettingError("nirvana needs a model without experts: it divides between attention and neurons")
    units = all(name in ground.settings for name in SPLIT)
    if not units and not ground.masks:
        raise SettingError("nirvana needs KV groups and FFN widths, or masks, among what the space changes")
    return nirvana_split(shape, masks=not units)


def nirvana_split(shape: Shape, gamma: float = GAMMA, masks: bool = False) -> Allocation:
    """At a level of 1 - s: neurons lose s (A + M) / (A / gamma + M), KV groups 1 / gamma of that share.

    A and M are the weights of attention and FFN for each hidden unit. Either masks are divided so, or units; the
    others stay whole.
    """
    attention = 2 * shape.head_dim * (shape.heads_per_group + 1) * shape.kv_groups
    ffn = (3 if shape.gated else 2) * shape.ffn

    def share(gene: OptionGene, level: float) -> float:
        if not (is_mask(gene.setting) if masks else gene.setting in SPLIT):
            return 1.0
        cut = (1.0 - level) * (attention + ffn) / (attention / gamma + ffn)
        return max(0.0, 1.0 - (cut if gene.kind == "ffn" else cut / gamma))

    return share
