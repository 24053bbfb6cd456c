"""A supernet whose ladders are not in memory: a batch of plans moves on sublayer by sublayer, all of it together."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoprune.merging import MERGE
from autoprune.models.base import Adapter, State
from autoprune.pruning.feed import AHEAD, ALL, SHARED, Feed, Key
from autoprune.space import Plan, SublayerPlan
from autoprune.supernet import Ladders, Supernet, Visit, VisitMany
from autoprune.trie import trie_order

At = tuple[int, int]  # a node of the trie's current level, and a micro-batch


class StreamedSupernet(Supernet):
    """Reads each sublayer once for all plans and micro-batches that go together.

    All plans stand before the same sublayer: a node of their trie is a state, which is run once for every option that
    follows it. States beyond `memory_bytes` wait on disk. The numbers are those of `Supernet`, bit by bit.
    """

    def __init__(self, adapter: Adapter, ladders: Ladders, memory_bytes: int, feed: Feed) -> None:
        super().__init__(adapter, ladders, memory_bytes)
        self.feed = feed
        self.spilled = 0  # telemetry: bytes of states that were written to disk

    def together(self, plans: int, ids: Tensor) -> int:
        """How many micro-batches like this go together: as many as states fit into memory for, those read and made."""
        state = self.adapter.embed(ids[:1]).hidden.nbytes * len(ids)
        return max(1, self.memory_bytes // max(1, 2 * plans * state))

    def run(self, plans: Sequence[Plan], ids: Tensor, visit: Visit) -> None:
        """Call `visit(index, logits [B, T, V])` once for every plan; ids [B, T]."""
        self.run_many(plans, [ids], lambda batch, index, logits: visit(index, logits))

    @torch.inference_mode()
    def run_many(self, plans: Sequence[Plan], batches: Sequence[Tensor], visit: VisitMany) -> None:
        """Call `visit(micro-batch, index, logits [B, T, V])` for every plan on every micro-batch."""
        if not plans:
            return
        with tempfile.TemporaryDirectory(prefix="autoprune-states-") as folder, self.feed.of_a_batch():
            states = _States(Path(folder), self.memory_bytes)
            for number, ids in enumerate(batches):
                states.put((0, number), self.adapter.embed(ids))
            nodes = [trie_order(plans)]
            for at in range(len(plans[0].sublayers)):
                nodes = self._advance(plans, nodes, at, len(batches), states)
            self._visit(nodes, len(batches), states, visit)
        self.spilled += states.spilled
        self.telemetry.naive_runs += len(batches) * sum(not s.gone for p in plans for s in p.sublayers)

    def _advance(
        self, plans: Sequence[Plan], nodes: list[list[int]], at: int, batches: int, states: _States
    ) -> list[list[int]]:
        """Move all plans over sublayer `at`; the nodes behind it, each the plans that share all so far."""
        self.feed.expect(list(self._wanted(plans, at)))
        split = [_branches(plans, members, at) for members in nodes]
        made: list[list[int]] = []
        first = [0]
        for branches in split:
            made += branches.values()
            first.append(len(made))
        after = _Following(states)
        for node, branches in enumerate(split):
            for batch in range(batches):
                state = states.take((node, batch))
                for position, sublayer in enumerate(branches):
                    after.put((first[node] + position, batch), self._moved(at, sublayer, state))
        after.settle()
        self.feed.drop(at // 2, plans[0].sublayers[at].kind)
        return made

    def _wanted(self, plans: Sequence[Plan], at: int) -> Iterator[Key]:
        """What ladders hold of this sublayer's options and the next ones', in the order in which they are run."""
        for depth in range(at, min(at + AHEAD, len(plans[0].sublayers))):
            options = {p.sublayers[depth] for p in plans if not p.sublayers[depth].gone}
            if not options:
                continue
            block, kind = depth // 2, plans[0].sublayers[depth].kind
            self.feed.first((block, kind), _experts(options))
            yield (block, kind, SHARED)
            counts = {int(option.get(self.adapter.unit_setting(kind), SHARED)) for option in options}
            yield from ((block, kind, count) for count in sorted(counts - {SHARED}, reverse=True))

    def _moved(self, at: int, sublayer: SublayerPlan, state: State) -> State:
        if sublayer.gone:
            return state
        self.telemetry.runs += 1
        return self._run(at, sublayer, state)

    def _visit(self, nodes: list[list[int]], batches: int, states: _States, visit: VisitMany) -> None:
        for batch in range(batches):
            for node, members in enumerate(nodes):
                state = states.take((node, batch))
                for index in members:
                    visit(batch, index, self.adapter.head(state))


def _branches(plans: Sequence[Plan], members: Sequence[int], at: int) -> dict[SublayerPlan, list[int]]:
    """The plans of a node by their next sublayer."""
    found: dict[SublayerPlan, list[int]] = {}
    for index in members:
        found.setdefault(plans[index].sublayers[at], []).append(index)
    return found


def _experts(options: set[SublayerPlan]) -> int:
    """The most experts that a sublayer's options have; masks are chosen, and experts mixed, of all there are."""
    whole = any(option.unmasked != option or MERGE in dict(option.settings) for option in options)
    return ALL if whole else max(int(option.get("experts", ALL)) for option in options)


@dataclass(frozen=True)
class _Spilled:
    """A state whose hidden part waits in a file."""

    rest: State
    file: Path


class _States:
    """States by node and micro-batch, in memory within a bound; what is beyond it waits on disk."""

    def __init__(self, folder: Path, room: int) -> None:
        self._folder, self._room = folder, room
        self._held: dict[At, State | _Spilled] = {}
        self._bytes, self._files = 0, 0
        self.spilled = 0

    def put(self, at: At, state: State) -> None:
        """Keep a state."""
        size = state.hidden.nbytes
        if self._bytes + size <= self._room:
            self._bytes += size
            self._held[at] = state
            return
        file = self._folder / f"{self._files}.safetensors"
        self._files += 1
        self.spilled += size
        save_file({"hidden": state.hidden.cpu().contiguous()}, file)
        empty = state.hidden.new_empty(0)
        self._held[at] = _Spilled(replace(state, hidden=empty), file)

    def take(self, at: At) -> State:
        """Give a state away."""
        found = self._held.pop(at)
        if isinstance(found, State):
            self._bytes -= found.hidden.nbytes
            return found
        hidden = load_file(found.file)["hidden"].clone().to(found.rest.hidden.device)
        found.file.unlink()
        return replace(found.rest, hidden=hidden)

    def rename(self, names: dict[At, At]) -> None:
        """Give every state its name on the next level."""
        self._held = {names[at]: state for at, state in self._held.items()}


class _Following:
    """States of the next level, kept beside those of this one until all of it is done."""

    def __init__(self, states: _States) -> None:
        self._states = states
        self._names: dict[At, At] = {}

    def put(self, at: At, state: State) -> None:
        """Keep a state of the next level."""
        beside = (-1 - at[0], at[1])
        self._states.put(beside, state)
        self._names[beside] = at

    def settle(self) -> None:
        """This level is done: what was made is now the level."""
        self._states.rename(self._names)
