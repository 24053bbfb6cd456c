"""Nested ladders: one importance order per site; each option is a zero-copy prefix of the reordered weights."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file

from autoprune.cache import Cache
from autoprune.errors import SpaceError
from autoprune.models.base import Adapter, Weights
from autoprune.pruning.calibration import Progress, ranked_orders
from autoprune.space import KINDS, Kind, SublayerPlan

FILE = "ladders.safetensors"
TRANSPOSED = "_t"  # tensors whose units are columns are stored by column, so that a prefix is dense in memory


class NestedLadders:
    """The reordered weights of every sublayer, memory-mapped; `weights` hands out prefixes."""

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self._units = {kind: adapter.units(kind) for kind in KINDS}
        self._setting = {kind: adapter.unit_setting(kind) for kind in KINDS}
        self._full: dict[tuple[int, Kind], dict[str, torch.Tensor]] = {}
        self._views: dict[tuple[int, SublayerPlan], Weights] = {}
        with safe_open(folder / FILE, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - a safetensors handle is not a dict
                block, kind, tensor = name.split(".")
                value = file.get_tensor(name)
                if tensor.endswith(TRANSPOSED):
                    tensor, value = tensor.removesuffix(TRANSPOSED), value.t()
                self._full.setdefault((int(block), kind), {})[tensor] = value

    def order(self, block: int, kind: Kind) -> list[int]:
        """Unit indices of the dense model, most important first."""
        return self._full[block, kind]["order"].tolist()

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that keeps as many units as `plan` says; views, no copies."""
        found = self._views.get((block, plan))
        if found is None:
            count = int(plan.get(self._setting[plan.kind]))
            units = self._units[plan.kind]
            if not 0 < count <= units.count:
                raise SpaceError(f"block {block} {plan.kind} keeps {count} of {units.count} units")
            full = {n: t for n, t in self._full[block, plan.kind].items() if n != "order"}
            found = self._views[block, plan] = units.prefix(full, count)
        return found


def build_nested(
    adapter: Adapter,
    model_digest: str,
    windows: NDArray[np.int32],
    sequences: int,
    cache: Cache,
    progress: Progress | None = None,
) -> Path:
    """The ladder folder for these calibration windows, from the cache or built now."""
    tokens = windows.astype(np.int32).tobytes()
    inputs = {
        "model": model_digest,
        "calibration": hashlib.sha256(tokens).hexdigest(),
        "sequences": sequences,
        "criterion": "activation",
        "layout": 2,
    }

    def build(folder: Path) -> None:
        tensors: dict[str, torch.Tensor] = {}
        with torch.inference_mode():
            for block, kind, order in ranked_orders(adapter, windows, sequences, progress):
                units = adapter.units(kind)
                for name, tensor in units.take(adapter.weights(block, kind), order).items():
                    by_column = units.slices.get(name, (0, 1))[0] == 1
                    stored = tensor.t().contiguous() if by_column else tensor.clone().contiguous()
                    tensors[f"{block}.{kind}.{name}{TRANSPOSED if by_column else ''}"] = stored
                tensors[f"{block}.{kind}.order"] = order.clone()
        save_file(tensors, folder / FILE)

    return cache.folder("ladders", ["nested", inputs], build)
