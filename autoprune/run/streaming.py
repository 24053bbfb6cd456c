"""`stream=disk`: a run whose model and ladders stay on disk, but for the sublayers that are at work."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, nearest
from autoprune.models.mapped import Ranges, in_fp32
from autoprune.space import KINDS
from autoprune.streamed import StreamedSupernet
from autoprune.supernet import Ladders, Supernet

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.cache import Cache
    from autoprune.models.base import Adapter, Weights
    from autoprune.models.load import Loaded
    from autoprune.pruning.ladders import StoredLadders

STREAMS = ("off", "disk")
SUBLAYERS = 2  # one that is at work, and one that is read meanwhile


def check_stream_settings(cfg: DictConfig) -> None:
    """Raise SettingError for an unknown way."""
    if cfg.stream not in STREAMS:
        raise SettingError(f"stream={cfg.stream} is unknown" + nearest(str(cfg.stream), STREAMS))


def mapping_of(cfg: DictConfig, cache: Cache) -> Callable[[str], str] | None:
    """How to find a checkpoint whose tensors can be mapped; None where the model is to be in memory."""
    if cfg.stream == "off":
        return None

    def mappable(source: str) -> str:
        if not Path(source).is_dir():
            raise SettingError(
                f"stream=disk: model={cfg.model} is no folder; download it and name its folder"
            )
        return str(in_fp32(Path(source), cache))

    return mappable


def check_mapped(cfg: DictConfig, loaded: Loaded, adapter: Adapter) -> None:
    """Raise SettingError when the model's blocks are in memory after all."""
    if cfg.stream == "off":
        return
    ranges = Ranges()
    for block in range(adapter.shape.blocks):
        for kind in KINDS:
            for name, tensor in adapter.weights(block, kind).items():
                if not ranges.hold(tensor):
                    raise SettingError(
                        f"stream=disk: {name} of block {block} of model={loaded.name} is made anew when it is loaded "
                        "(stacked experts are), so it has to be in memory; allowed: stream=off"
                    )


def forgetting(cfg: DictConfig) -> Callable[[Weights], None]:
    """What is done with the dense model's weights once they have been used."""
    if cfg.stream == "off":
        return lambda weights: None
    ranges: list[Ranges] = []

    def forget(weights: Weights) -> None:
        if not ranges:
            ranges.append(Ranges())  # once the model is loaded
        ranges[0].forget(weights.values())

    return forget


def supernet_of(cfg: DictConfig, adapter: Adapter, stored: StoredLadders, ladders: Ladders) -> Supernet:
    """The supernet on these ladders; `stored` are what they rest on."""
    memory = int(cfg.memory_mb) << 20
    if cfg.stream == "off":
        return Supernet(adapter, ladders, memory)
    room = int(cfg.stream_mb) << 20
    feed = stored.feed(room)
    if room < SUBLAYERS * feed.largest:
        least = -(-SUBLAYERS * feed.largest >> 20)
        raise SettingError(
            f"stream_mb={cfg.stream_mb} is too small: {SUBLAYERS} sublayers of this model's ladders take {least} MB"
        )
    return StreamedSupernet(adapter, ladders, memory, feed)


def forget_all(cfg: DictConfig, model: Any) -> None:
    """Let go of the memory of a mapped model's parameters."""
    if cfg.stream != "off":
        Ranges().forget(p.data for p in model.parameters())
