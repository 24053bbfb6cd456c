"""Allocators: how much every site keeps at a budget, without any search; plans to start a search from."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.allocation import Allocation
from autoprune.models.base import Adapter
from autoprune.pruning.allocators.magnitude import global_magnitude
from autoprune.pruning.allocators.nirvana import nirvana_split
from autoprune.pruning.allocators.owl import owl
from autoprune.pruning.masks.statistics import Statistics


def allocations(adapter: Adapter, statistics: Statistics, settings: Sequence[str]) -> list[Allocation]:
    """Those for the masks of a space, by its plan settings, and for its units beside them."""
    found = [owl(adapter, statistics), global_magnitude(adapter)]
    units = [adapter.unit_setting("attention"), adapter.unit_setting("ffn")]
    if all(name in settings for name in units) and not adapter.shape.experts:
        found.append(nirvana_split(adapter.shape))
    return found
