"""Ladders that rank nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from autoprune.models.llama import LlamaAdapter
from autoprune.space import SublayerPlan


@dataclass(frozen=True)
class Prefixes:
    """Ladders that keep the first units as they are."""

    adapter: LlamaAdapter

    def weights(self, block: int, plan: SublayerPlan) -> Any:
        count = int(plan.get(self.adapter.unit_setting(plan.kind)))
        return self.adapter.units(plan.kind).prefix(self.adapter.weights(block, plan.kind), count)
