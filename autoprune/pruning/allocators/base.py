"""What allocators look at."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

from autoprune.allocation import Allocation
from autoprune.models.base import Adapter
from autoprune.pruning.masks.statistics import Statistics
from autoprune.space import OptionGene, is_mask

UNITS = ("kv_groups", "width", "experts")  # settings that count units of a sublayer


@dataclass(frozen=True)
class Ground:
    """A model, what passes through it on calibration text, and the settings that a space's genes set.

    `gather` is called when an allocator asks for statistics, and not before.
    """

    adapter: Adapter
    gather: Callable[[], Statistics]
    settings: Collection[str]

    @cached_property
    def statistics(self) -> Statistics:
        """Second moments of what enters every matrix."""
        return self.gather()

    @cached_property
    def masks(self) -> bool:
        """Whether the space masks matrices."""
        return any(is_mask(name) for name in self.settings)

    def divides(self, gene: OptionGene) -> bool:
        """Whether an allocator sets a gene: masks where there are some, else units; anything else stays whole."""
        return is_mask(gene.setting) if self.masks else gene.setting in UNITS


Allocator = Callable[[Ground], Allocation]
"""Raises SettingError, which begins with what the allocator needs, when the model or the space lack it."""
