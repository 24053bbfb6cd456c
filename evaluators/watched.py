"""Proxies that look at sublayers as they pass: an adapter that carries a sum along, so that prefixes stay shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from autoprune.evaluation import Context
from autoprune.models.base import Adapter, State, Weights
from autoprune.space import Kind, Plan, SublayerPlan
from autoprune.supernet import Supernet

Look = Callable[[Adapter, int, Kind, State, State, Weights], Tensor | None]
"""What one sublayer adds to the sum: fp64 [B] from adapter, block, kind, states before and after, weights."""


@dataclass(frozen=True)
class Tallied(State):
    """A state with what its sublayers added up to."""

    tally: Tensor | None = None  # fp64 [B]


class Watch:
    """An adapter whose head gives the sum of what `look` says of the sublayers that ran."""

    def __init__(self, adapter: Adapter, look: Look) -> None:
        self._adapter, self._look = adapter, look
        self.shape, self.model = adapter.shape, adapter.model

    def embed(self, ids: Tensor) -> Tallied:
        """The state before block 0, nothing added yet."""
        state = self._adapter.embed(ids)
        tally = torch.zeros(len(ids), dtype=torch.float64, device=state.hidden.device)
        return Tallied(**vars(state), tally=tally)

    def run_sublayer(
        self, block: int, kind: Kind, state: Tallied, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tallied:
        """The sublayer, and its share added."""
        after = self._adapter.run_sublayer(block, kind, state, weights, plan)
        found = self._look(self._adapter, block, kind, state, after, weights)
        assert state.tally is not None
        tally = state.tally if found is None else state.tally + found
        return Tallied(**{**vars(after), "tally": tally})

    def head(self, state: Tallied) -> Tensor:
        """The sum, [B]."""
        assert state.tally is not None
        return state.tally


class Watched:
    """A proxy that is a sum over the sublayers of a plan, each seen in the plan's own pass."""

    metrics: tuple[str, ...]
    needs: Literal["supernet"] = "supernet"
    look: Look

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def measure(self, supernet: Supernet, plans: Sequence[Plan], ids: Tensor) -> list[Mapping[str, Tensor]]:
        """The sum of each sequence, fp64 [B], plan by plan; a shared prefix runs once."""
        found: dict[int, Tensor] = {}
        watch: Any = Watch(supernet.adapter, self.look)
        Supernet(watch, supernet.ladders, supernet.memory_bytes).run(plans, ids, found.__setitem__)
        return [{self.metrics[0]: found[i]} for i in range(len(plans))]
