"""Ladders on disk: the weights of every sublayer at each of its options, memory-mapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.errors import SpaceError
from autoprune.models.base import Adapter, Units, Weights
from autoprune.space import KINDS, Kind, SublayerPlan

FILE = "ladders.safetensors"
TRANSPOSED = "_t"  # tensors whose units are columns are stored by column, so that a prefix is dense in memory
OPTION = "@"  # `o@2` is the output projection of the option that keeps 2 units
ORDER = "order"
OUTPUT: Mapping[Kind, str] = {"attention": "o", "ffn": "down"}  # each kind's output projection


class StoredLadders:
    """`weights` hands out prefixes of the reordered weights, and an option's own tensors where it has some."""

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self._units = {kind: adapter.units(kind) for kind in KINDS}
        self._setting = {kind: adapter.unit_setting(kind) for kind in KINDS}
        self._full: dict[tuple[int, Kind], dict[str, Tensor]] = {}
        self._own: dict[tuple[int, Kind, int], dict[str, Tensor]] = {}
        self._views: dict[tuple[int, SublayerPlan], Weights] = {}
        with safe_open(folder / FILE, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                block, kind, tensor = name.split(".")
                self._put(int(block), kind, tensor, file.get_tensor(name))

    def _put(self, block: int, kind: Kind, tensor: str, value: Tensor) -> None:
        if tensor.endswith(TRANSPOSED):
            tensor, value = tensor.removesuffix(TRANSPOSED), value.t()
        tensor, _, count = tensor.partition(OPTION)
        if count:
            self._own.setdefault((block, kind, int(count)), {})[tensor] = value
        else:
            self._full.setdefault((block, kind), {})[tensor] = value

    def order(self, block: int, kind: Kind) -> list[int]:
        """Unit indices of the dense model, most important first."""
        return self._full[block, kind][ORDER].tolist()

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that keeps as many units as `plan` says; views, no copies, no masks."""
        plan = plan.unmasked
        found = self._views.get((block, plan))
        if found is None:
            count = int(plan.get(self._setting[plan.kind]))
            units = self._units[plan.kind]
            if not 0 < count <= units.count:
                raise SpaceError(f"block {block} {plan.kind} keeps {count} of {units.count} units")
            full = {n: t for n, t in self._full[block, plan.kind].items() if n != ORDER}
            own = self._own.get((block, plan.kind, count), {})
            found = self._views[block, plan] = {**units.prefix(full, count), **own}
        return found


class LadderFile:
    """Collects the tensors of a ladder file."""

    def __init__(self) -> None:
        self._tensors: dict[str, Tensor] = {}

    def site(self, block: int, kind: Kind, units: Units, weights: Weights, order: Tensor) -> None:
        """The weights of a sublayer, its units reordered."""
        for name, tensor in units.take(weights, order).items():
            by_column = units.slices.get(name, (0, 1))[0] == 1
            stored = tensor.t().contiguous() if by_column else tensor.clone().contiguous()
            self._tensors[f"{block}.{kind}.{name}{TRANSPOSED if by_column else ''}"] = stored
        self._tensors[f"{block}.{kind}.{ORDER}"] = order.clone()

    def option(self, block: int, kind: Kind, count: int, output: Tensor) -> None:
        """The output projection [out, columns] that the option of `count` units has for itself."""
        name = f"{block}.{kind}.{OUTPUT[kind]}{OPTION}{count}{TRANSPOSED}"
        self._tensors[name] = output.t().contiguous()

    def save(self, folder: Path) -> None:
        """Write the file."""
        save_file(self._tensors, folder / FILE)


def columns(order: Tensor, count: int, size: int) -> Tensor:
    """Columns [count x size] of the output projection that the first `count` units of `order` own."""
    return (order[:count, None] * size + torch.arange(size)).flatten()
