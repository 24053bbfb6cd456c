"""Runs a batch of plans over shared prefixes: sorted by depth, plans form a trie over sublayers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from autoprune import precision
from autoprune.models.base import Adapter, State, Weights
from autoprune.space import Plan, SublayerPlan
from autoprune.trie import common, trie_order

Visit = Callable[[int, Tensor], None]
VisitMany = Callable[[int, int, Tensor], None]


class Ladders(Protocol):
    """The weights of every site at each of its options."""

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """Weights of a sublayer that is not gone."""


@dataclass
class Telemetry:
    """Sublayer runs: those made, and those that plan-by-plan evaluation would have made."""

    runs: int = 0
    naive_runs: int = 0


class Supernet:
    """Dense model plus ladders; runs any plan without building a new model."""

    def __init__(self, adapter: Adapter, ladders: Ladders, memory_bytes: int = 512 << 20) -> None:
        self.adapter = adapter
        self.ladders = ladders
        self.memory_bytes = memory_bytes
        self.telemetry = Telemetry()

    def together(self, plans: int, ids: Tensor) -> int:
        """How many micro-batches like this go together in `run_many`: here nothing is gained by more than one."""
        return 1

    def run_many(self, plans: Sequence[Plan], batches: Sequence[Tensor], visit: VisitMany) -> None:
        """Call `visit(micro-batch, index, logits [B, T, V])` for every plan on every micro-batch of ids [B, T]."""
        for number, ids in enumerate(batches):
            self.run(plans, ids, partial(visit, number))

    @torch.inference_mode()
    def run(self, plans: Sequence[Plan], ids: Tensor, visit: Visit) -> None:
        """Call `visit(index, logits [B, T, V])` once for every plan, in trie order; ids [B, T].

        A sublayer whose whole prefix is shared runs once. Kept states stay within `memory_bytes`; what does not fit is
        computed again. Each plan's numbers are bitwise those of running it alone.
        """
        order = trie_order(plans)
        shared = [common(plans[a], plans[b]) for a, b in zip(order, order[1:], strict=False)] + [0]
        start = self.adapter.embed(ids)
        room = max(1, self.memory_bytes // max(1, start.hidden.nbytes))
        kept: dict[int, State] = {0: start}  # depth -> state before that sublayer, on the current path
        for position, index in enumerate(order):
            branches = _branches(shared, position)
            self.telemetry.naive_runs += sum(not s.gone for s in plans[index].sublayers)
            visit(index, self.adapter.head(self._descend(plans[index], kept, branches, room)))
            for depth in [d for d in kept if d > shared[position]]:
                del kept[depth]

    def _descend(self, plan: Plan, kept: dict[int, State], branches: set[int], room: int) -> State:
        """The state after the last sublayer, from the deepest kept state on; keeps states at branch depths."""
        depth = max(kept)
        state = kept[depth]
        for at in range(depth, len(plan.sublayers)):
            sublayer = plan.sublayers[at]
            if not sublayer.gone:
                state = self._run(at, sublayer, state)
                self.telemetry.runs += 1
            if at + 1 in branches and at + 1 not in kept:
                kept[at + 1] = state
                if len(kept) > room:
                    # the shallowest is needed last; depth 0 is the embedding, always at hand
                    shallow = min((d for d in kept if d > 0), default=0)
                    kept.pop(shallow if shallow else at + 1)
        return state

    def _run(self, at: int, sublayer: SublayerPlan, state: State) -> State:
        weights = self.ladders.weights(at // 2, sublayer)
        with precision.sublayer(state.hidden.device):
            return self.adapter.run_sublayer(at // 2, sublayer.kind, state, weights, sublayer)

    def first_bad_sublayer(self, plan: Plan, ids: Tensor) -> str:
        """Where non-finite values first appear when `plan` runs on ids [B, T]: `block 3 attention`, or `head`."""
        with torch.inference_mode():
            state = self.adapter.embed(ids)
            if not bool(torch.isfinite(state.hidden).all()):
                return "the embedding"
            for at, sublayer in enumerate(plan.sublayers):
                if sublayer.gone:
                    continue
                state = self._run(at, sublayer, state)
                if not bool(torch.isfinite(state.hidden).all()):
                    return f"block {at // 2} {sublayer.kind}"
        return "the head"


def _branches(shared: Sequence[int], position: int) -> set[int]:
    """Depths at which later plans leave the current path: only these states are worth keeping."""
    depths: set[int] = set()
    lowest = shared[position]
    for depth in shared[position:]:
        lowest = min(lowest, depth)
        depths.add(lowest)
        if lowest == 0:
            break
    return depths
