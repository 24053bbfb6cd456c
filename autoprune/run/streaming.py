"""`stream=disk`, `host`: model and ladders stay on disk, or beside a GPU in memory, but for the sublayers at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from autoprune.device import check_room
from autoprune.errors import SettingError, nearest
from autoprune.models.decoder import Decoder
from autoprune.models.mappable import mappable
from autoprune.models.mapped import Ranges
from autoprune.pruning.feed import DenseBlocks
from autoprune.space import KINDS
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Ladders, Supernet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.cache import Cache
    from autoprune.models.base import Adapter, Weights
    from autoprune.models.load import Loaded
    from autoprune.pruning.ladders import StoredLadders

STREAMS = ("off", "disk", "host")
SUBLAYERS = 2  # one that is at work, and one that is read meanwhile


def check_stream_settings(cfg: DictConfig) -> None:
    """Raise SettingError for an unknown way."""
    if cfg.stream not in STREAMS:
        raise SettingError(f"stream={cfg.stream} is unknown" + nearest(str(cfg.stream), STREAMS))


def mapping_of(cfg: DictConfig, cache: Cache) -> Callable[[str], str] | None:
    """How to find a checkpoint whose tensors can be mapped; None where the model is to be in memory."""
    if cfg.stream != "disk":
        return None

    def found(source: str) -> str:
        if not Path(source).is_dir():
            raise SettingError(
                f"stream=disk: model={cfg.model} is no folder; download it and name its folder"
            )
        return str(mappable(Path(source), cache))

    return found


def move(cfg: DictConfig, model: Any, device: torch.device) -> None:
    """Bring a model to its device; raises SettingError where it does not fit."""
    if device.type == "cpu" or cfg.stream != "off":
        return
    check_room(device, sum(p.nbytes for p in model.parameters()), "the model in fp32")
    model.to(device)


def check_mapped(cfg: DictConfig, loaded: Loaded, adapter: Adapter) -> None:
    """Raise SettingError when the model's blocks are in memory after all."""
    if cfg.stream != "disk":
        return
    ranges = Ranges()
    for block in range(adapter.shape.blocks):
        for kind in KINDS:
            for name, tensor in adapter.weights(block, kind).items():
                if not ranges.hold(tensor):
                    raise SettingError(
                        f"stream=disk: {name} of block {block} of model={loaded.name} is made anew when it is loaded, "
                        "so it has to be in memory; allowed: stream=off"
                    )


def forgetting(cfg: DictConfig) -> Callable[[Weights], None]:
    """What is done with the dense model's weights once they have been used."""
    if cfg.stream != "disk":
        return lambda weights: None
    ranges: list[Ranges] = []

    def forget(weights: Weights) -> None:
        if not ranges:
            ranges.append(Ranges())  # once the model is loaded
        ranges[0].forget(weights.values())

    return forget


def supernet_of(cfg: DictConfig, adapter: Adapter, stored: StoredLadders, ladders: Ladders) -> Supernet:
    """The supernet on these ladders; `stored` are what they rest on."""
    memory, device = int(cfg.memory_mb) << 20, adapter.model.device
    if cfg.stream == "off" or (cfg.stream == "host" and device.type == "cpu"):
        return Supernet(adapter, ladders, memory)
    feed = stored.feed(_room(cfg), device, pin=cfg.stream == "host")
    _check_room(cfg, feed.largest, "ladders")
    return StreamedSupernet(adapter, ladders, memory, feed)


def offload(cfg: DictConfig, adapter: Any, device: torch.device) -> None:
    """Bring all of a streamed model but its blocks to a GPU, and let these follow as they are wanted.

    Raises SettingError for an adapter that does not say where its blocks are.
    """
    if cfg.stream == "off" or device.type == "cpu":
        return
    if not isinstance(adapter, Decoder):
        raise SettingError(
            f"stream={cfg.stream} on device={device} needs an adapter made from autoprune's Decoder; "
            "allowed: stream=off, or device=cpu"
        )
    full = {(b, k): dict(adapter.weights(b, k)) for b in range(adapter.shape.blocks) for k in KINDS}
    _move_around(adapter.model, adapter.layout.blocks, device)
    dense = DenseBlocks(full, _room(cfg), device)
    _check_room(cfg, dense.largest, "dense blocks")
    adapter.fed = dense


def _move_around(model: Any, blocks: str, device: torch.device) -> None:
    """Move everything but the blocks."""
    parent, _, name = blocks.rpartition(".")
    holder, waiting = model.get_submodule(parent), model.get_submodule(blocks)
    setattr(holder, name, torch.nn.ModuleList())
    try:
        model.to(device)
    finally:
        setattr(holder, name, waiting)


def _room(cfg: DictConfig) -> int:
    return int(cfg.stream_mb) << 20


def _check_room(cfg: DictConfig, largest: int, what: str) -> None:
    if _room(cfg) < SUBLAYERS * largest:
        least = -(-SUBLAYERS * largest >> 20)
        raise SettingError(
            f"stream_mb={cfg.stream_mb} is too small: {SUBLAYERS} sublayers of this model's {what} take {least} MB"
        )


def forget_all(cfg: DictConfig, model: Any) -> None:
    """Let go of the memory of a mapped model's parameters."""
    if cfg.stream == "disk":
        Ranges().forget(p.data for p in model.parameters())
