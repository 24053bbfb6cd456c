"""`stream=disk`, `host`, `auto`: what a run does with blocks and ladders that are not on its device."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.device import check_room
from autoprune.errors import SettingError
from autoprune.models.decoder import Decoder
from autoprune.models.mappable import mappable
from autoprune.models.mapped import Ranges
from autoprune.pruning.feed import DenseBlocks, MappedBlocks, Site, Tensors
from autoprune.run.placement import Placement, check_fed
from autoprune.space import KINDS
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Ladders, Supernet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.cache import Cache
    from autoprune.models.base import Adapter
    from autoprune.models.load import Loaded
    from autoprune.pruning.ladders import StoredLadders

SHAPES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")  # read at the first product of matrices
FEW = "64"


def mapping_of(cfg: DictConfig, placement: Placement, cache: Cache) -> Callable[[str], str] | None:
    """How to find a checkpoint whose tensors can be mapped; None where the model is to be in memory."""
    if not placement.maps:
        return None

    def found(source: str) -> str:
        if not Path(source).is_dir():
            raise SettingError(
                f"stream={cfg.stream}: model={cfg.model} is no folder; download it and name its folder"
            )
        return str(mappable(Path(source), cache))

    return found


def move(placement: Placement, model: Any, device: torch.device) -> None:
    """Bring a model to its device; raises SettingError where it does not fit."""
    if device.type == "cpu" or not placement.rests:
        return
    check_room(device, sum(p.nbytes for p in model.parameters()), "the model in fp32")
    model.to(device)


def check_mapped(cfg: DictConfig, placement: Placement, loaded: Loaded, adapter: Adapter) -> None:
    """Raise SettingError when blocks that should be in their files are in memory after all."""
    ranges = Ranges()
    for block in sorted(placement.at("disk", adapter.shape.blocks)):
        for kind in KINDS:
            for name, tensor in adapter.weights(block, kind).items():
                if not ranges.hold(tensor):
                    raise SettingError(
                        f"stream={cfg.stream}: {name} of block {block} of model={loaded.name} is made anew when it is "
                        "loaded, so it has to be in memory; allowed: stream=off"
                    )


def keep_few_shapes(placement: Placement, adapter: Adapter) -> None:
    """Before anything runs: let the CPU's libraries hold what they prepared for fewer shapes than their usual 1024.

    Each expert has another number of tokens every time, so that they would hold hundreds of MB and use little of it.
    """
    if adapter.shape.experts and not placement.rests:
        for name in SHAPES:
            os.environ.setdefault(name, FEW)


def supernet_of(
    cfg: DictConfig, placement: Placement, adapter: Adapter, stored: StoredLadders, ladders: Ladders
) -> Supernet:
    """The supernet on these ladders; `stored` are what they rest on."""
    memory, device, blocks = int(cfg.memory_mb) << 20, adapter.model.device, adapter.shape.blocks
    if placement.rests:
        return Supernet(adapter, ladders, memory)
    feed = stored.feed(placement.room, device, placement.at("device", blocks), placement.at("host", blocks))
    check_fed(cfg, placement, feed.largest, "ladders")
    return StreamedSupernet(adapter, ladders, memory, feed)


def offload(cfg: DictConfig, placement: Placement, adapter: Any, device: torch.device) -> None:
    """Let blocks that do not rest on the device follow as they are wanted; all else of the model goes to a GPU.

    Raises SettingError for an adapter that does not say where its blocks are.
    """
    if placement.rests:
        return
    blocks = adapter.shape.blocks
    full = {(b, k): dict(adapter.weights(b, k)) for b in range(blocks) for k in KINDS}
    resting = placement.at("device", blocks)
    if device.type == "cpu":
        adapter.fed = MappedBlocks(full, resting)
        return
    if not isinstance(adapter, Decoder):
        raise SettingError(
            f"stream={cfg.stream} on device={device} needs an adapter made from autoprune's Decoder; "
            "allowed: stream=off, or device=cpu"
        )
    _move_around(adapter.model, adapter.layout.blocks, device)
    _settle(full, resting, placement.at("host", blocks), device)
    dense = DenseBlocks(full, placement.room, device, resting)
    check_fed(cfg, placement, dense.largest, "dense blocks")
    adapter.fed = dense


def _settle(
    full: dict[Site, Tensors], resting: frozenset[int], hosted: frozenset[int], device: torch.device
) -> None:
    """Bring blocks to where they rest; those of the machine's memory are copies where a file was mapped."""
    ranges = Ranges()
    for (block, _), tensors in full.items():
        for name, tensor in tensors.items():
            if block in resting:
                tensors[name] = tensor.to(device)
            elif block in hosted and ranges.hold(tensor):
                tensors[name] = tensor.clone()


def _move_around(model: Any, blocks: str, device: torch.device) -> None:
    """Move everything but the blocks."""
    parent, _, name = blocks.rpartition(".")
    holder, waiting = model.get_submodule(parent), model.get_submodule(blocks)
    setattr(holder, name, torch.nn.ModuleList())
    try:
        model.to(device)
    finally:
        setattr(holder, name, waiting)


def forget_all(placement: Placement, model: Any) -> None:
    """Let go of the memory of a mapped model's parameters."""
    if placement.maps:
        Ranges().forget(p.data for p in model.parameters())
