"""How many bytes the ladders of a model take, before they are built."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from autoprune.models.base import Adapter
from autoprune.pruning.ladders import OUTPUT
from autoprune.space import KINDS, Kind

INDEX = 8  # bytes of a unit's place in its order


@dataclass(frozen=True)
class Footprint:
    """Bytes of a sublayer's ladder: what all options share, and what each has for itself."""

    shared: int
    own: tuple[int, ...]

    @property
    def whole(self) -> int:
        """All of it."""
        return self.shared + sum(self.own)

    @property
    def at_work(self) -> int:
        """What is read for its largest option."""
        return self.shared + max(self.own, default=0)


def footprint(
    adapter: Adapter, block: int, kind: Kind, options: Mapping[str, tuple[int, ...]] | None
) -> Footprint:
    """Of one sublayer, fp32 or what the adapter's model is in; `options` of ladders that are refit, else None."""
    weights, setting = adapter.weights(block, kind), adapter.unit_setting(kind)
    units, experts = adapter.units(kind).count, adapter.all_units(kind).get("experts")
    order = units if experts is None else experts.count * (units + 1)
    output = weights[OUTPUT[kind]]
    counts = () if options is None else options.get(setting, ())
    own = [math.prod(output.shape) * c // units * output.element_size() for c in counts if 0 < c < units]
    return Footprint(sum(t.nbytes for t in weights.values()) + INDEX * order, tuple(own))


def footprints(adapter: Adapter, options: Mapping[str, tuple[int, ...]] | None) -> list[list[Footprint]]:
    """Of all sublayers, by block."""
    return [[footprint(adapter, b, kind, options) for kind in KINDS] for b in range(adapter.shape.blocks)]
