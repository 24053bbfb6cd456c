"""Ladders on disk: the weights of every sublayer at each of its options, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import SpaceError
from autoprune.merging import MERGE
from autoprune.models.base import Adapter, Units, Weights
from autoprune.pruning.feed import Feed
from autoprune.pruning.link import pinned
from autoprune.pruning.merging import ROOM, Held
from autoprune.space import KINDS, Kind, SublayerPlan

FILE = "ladders.safetensors"
PARTS = "ladders*.safetensors"  # large ones are written in several
PART = 1 << 30  # bytes that are held before a part is written
TRANSPOSED = "_t"  # tensors whose units are columns are stored by column, so that a prefix is dense in memory
OPTION = "@"  # `o@2` is the output projection of the option that keeps 2 units
ORDER = "order"
EXPERTS = "order_experts"
OUTPUT: Mapping[Kind, str] = {"attention": "o", "ffn": "down"}  # each kind's output projection


class StoredLadders:
    """`weights` hands out prefixes of the reordered weights, and an option's own tensors where it has some.

    Tensors stay in their files, memory-mapped; for a model on another device they are copies there, unless its blocks
    are fed.
    """

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self._units = {kind: dict(adapter.all_units(kind)) for kind in KINDS}
        self._setting = {kind: adapter.unit_setting(kind) for kind in KINDS}
        self._mapped: dict[tuple[int, Kind], dict[str, Tensor]] = {}
        self._mapped_own: dict[tuple[int, Kind, int], dict[str, Tensor]] = {}
        self._views: dict[tuple[int, SublayerPlan], Weights] = {}
        self._merged = Held()
        fed = getattr(adapter, "fed", None) is not None
        self._device = torch.device("cpu") if fed else adapter.model.device
        for path in sorted(folder.glob(PARTS)):
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                    block, kind, tensor = name.split(".")
                    self._put(int(block), kind, tensor, file.get_tensor(name))
        self._full: Mapping[tuple[int, Kind], dict[str, Tensor]] = self._mapped
        self._own: Mapping[tuple[int, Kind, int], dict[str, Tensor]] = self._mapped_own
        self._holds_views = True

    def feed(
        self,
        room: int,
        device: torch.device | None = None,
        resting: frozenset[int] = frozenset(),
        hosted: frozenset[int] = frozenset(),
    ) -> Feed:
        """From now on hand out copies that are read when they are wanted, `room` bytes of them at a time.

        Blocks that are `resting` are taken to the device as a whole, `hosted` ones into pinned memory, from which they
        are read; the others are read from the files.
        """
        for held in (self._mapped, self._mapped_own):
            for key, stored in held.items():
                if key[0] in resting and device is not None:
                    stored |= {n: t if n in (ORDER, EXPERTS) else t.to(device) for n, t in stored.items()}
                elif key[0] in hosted:
                    stored |= {name: pinned(tensor) for name, tensor in stored.items()}
        experts = self._units["ffn"].get("experts")
        stacked = frozenset[str]() if experts is None else frozenset(experts.slices)
        feed = Feed(self._mapped, self._mapped_own, room, device, stacked, resting)
        self._full, self._own, self._holds_views = feed.full, feed.own, False
        self._merged = Held(min(ROOM, feed.largest))
        self._views.clear()
        return feed

    def _put(self, block: int, kind: Kind, tensor: str, value: Tensor) -> None:
        if tensor.endswith(TRANSPOSED):
            tensor, value = tensor.removesuffix(TRANSPOSED), value.mT
        tensor, _, count = tensor.partition(OPTION)
        if tensor not in (ORDER, EXPERTS):  # these are only ever listed
            value = value.to(self._device)
        if count:
            self._mapped_own.setdefault((block, kind, int(count)), {})[tensor] = value
        else:
            self._mapped.setdefault((block, kind), {})[tensor] = value

    def order(self, block: int, kind: Kind) -> list[int]:
        """Unit indices of the dense model, most important first; of experts those of each, in their order."""
        return self._mapped[block, kind][ORDER].tolist()

    def kept(self, block: int, plan: SublayerPlan) -> list[int]:
        """Unit indices of the dense model that a sublayer keeps, in the order in which its weights hold them."""
        return self.order(block, plan.kind)[: int(plan.get(self._setting[plan.kind]))]

    def experts(self, block: int) -> list[int]:
        """Indices of the dense model's experts, most important first."""
        return self._mapped[block, "ffn"][EXPERTS].tolist()

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that keeps as many units as `plan` says; no masks.

        Views, no copies, but for merged experts.
        """
        plan = plan.unmasked
        found = self._views.get((block, plan))
        if found is None:
            found = {n: t for n, t in self._full[block, plan.kind].items() if n not in (ORDER, EXPERTS)}
            text = dict(plan.settings).get(MERGE)
            for setting, units in self._units[plan.kind].items():
                if text is not None and setting == "experts":  # all of them are mixed
                    if not self._holds_views:
                        self._merged.only(block)
                    return self._merged.get(block, str(text), int(plan.get("width")), found)
                count = int(plan.get(setting, units.count))
                if not 0 < count <= units.count:
                    raise SpaceError(f"block {block} {plan.kind} keeps {count} of {units.count} units")
                found = units.prefix(found, count)
                if setting == self._setting[plan.kind]:  # which is the first
                    found |= self._own.get((block, plan.kind, count), {})
            if self._holds_views:
                self._views[block, plan] = found
        return found


class LadderFile:
    """Collects the tensors of a ladder, and writes a file in `folder` whenever they have become many."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._written = folder, 0
        self._tensors: dict[str, Tensor] = {}

    def site(self, block: int, kind: Kind, units: Units, weights: Weights, order: Tensor) -> None:
        """The weights of a sublayer, its units reordered."""
        self._write_part()
        self._put(block, kind, units, units.take(weights, order))
        self._tensors[f"{block}.{kind}.{ORDER}"] = order.cpu().clone()

    def experts(self, block: int, units: Units, weights: Weights, order: Tensor, neurons: Tensor) -> None:
        """The weights of experts that are in `order` already, their neurons too: those of each, [experts, width]."""
        self._write_part()
        self._put(block, "ffn", units, weights)
        self._tensors[f"{block}.ffn.{ORDER}"] = neurons.cpu().clone()
        self._tensors[f"{block}.ffn.{EXPERTS}"] = order.cpu().clone()

    def _put(self, block: int, kind: Kind, units: Units, weights: Weights) -> None:
        for name, tensor in weights.items():
            by_column = units.slices.get(name, (0, 1))[0] == tensor.ndim - 1 > 0
            stored = tensor.mT.contiguous().cpu() if by_column else tensor.cpu().clone().contiguous()
            self._tensors[f"{block}.{kind}.{name}{TRANSPOSED if by_column else ''}"] = stored

    def option(self, block: int, kind: Kind, count: int, output: Tensor) -> None:
        """The output projection [out, columns], of every expert, that the option of `count` units has for itself."""
        name = f"{block}.{kind}.{OUTPUT[kind]}{OPTION}{count}{TRANSPOSED}"
        self._tensors[name] = output.mT.contiguous().cpu()

    def bias(self, block: int, kind: Kind, count: int, values: Tensor) -> None:
        """The output's bias [out] that the option of `count` units has for itself."""
        self._tensors[f"{block}.{kind}.{OUTPUT[kind]}_bias{OPTION}{count}"] = values.cpu().clone()

    def save(self) -> None:
        """Write what is left."""
        save_file(self._tensors, self._folder / FILE)

    def _write_part(self) -> None:
        if sum(t.nbytes for t in self._tensors.values()) >= PART:
            self._written += 1
            save_file(self._tensors, self._folder / f"ladders-{self._written:05d}.safetensors")
            self._tensors.clear()


def columns(order: Tensor, count: int, size: int) -> Tensor:
    """Columns [count x size] of the output projection that the first `count` units of `order` own."""
    return (order[:count, None] * size + torch.arange(size, device=order.device)).flatten()
