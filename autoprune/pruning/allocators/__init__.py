"""Allocators: how much every site keeps at a budget, without any search; plans of their own, and some to start from."""

from __future__ import annotations

from collections.abc import Mapping

from autoprune.allocation import Allocation
from autoprune.pruning.allocators.base import Allocator, Ground
from autoprune.pruning.allocators.magnitude import global_magnitude
from autoprune.pruning.allocators.nirvana import SPLIT, nirvana
from autoprune.pruning.allocators.owl import owl
from autoprune.pruning.allocators.stun import stun

ALLOCATORS: Mapping[str, Allocator] = {
    "owl": owl,
    "magnitude": global_magnitude,
    "nirvana": nirvana,
    "stun": stun,
}


def usual_seeds(ground: Ground) -> list[Allocation]:
    """What every search of a space with masks may start from, its units beside them."""
    if not ground.masks:
        return []
    found = [owl(ground), global_magnitude(ground)]
    if all(name in ground.settings for name in SPLIT) and not ground.adapter.shape.experts:
        found.append(nirvana(ground))
    if "experts" in ground.settings:
        found.append(stun(ground))
    return found
