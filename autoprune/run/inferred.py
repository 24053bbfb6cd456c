"""`stream=auto`: Hugging Face's accelerate says where blocks rest, from a model without weights and bounds."""

from __future__ import annotations

import importlib.util
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from autoprune.errors import SettingError
from autoprune.models import adapter_for
from autoprune.models.decoder import Decoder
from autoprune.models.load import blank_model
from autoprune.pruning.footprint import footprints
from autoprune.run.placement import SUBLAYERS, Placement, Where, check_fed
from autoprune.space import is_mask
from autoprune.sublayers import SpacePart, joint_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

MB = 1 << 20
HOST: Any = "cpu"  # accelerate's word for the machine's memory; a GPU is a number


class Block(nn.Module):
    """A block and its ladders: nothing of it is placed by itself."""

    def __init__(self, block: nn.Module, ladders: int) -> None:
        super().__init__()
        self.block = block
        self.ladders = nn.Parameter(
            torch.empty(ladders, dtype=torch.uint8, device="meta"), requires_grad=False
        )


class Around(nn.Module):
    """Embeddings, head, last norm: what is no block, and is always on the device."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


@dataclass(frozen=True)
class Skeleton:
    """A model without weights, what is around its blocks first; bytes of each block and of the largest sublayer."""

    whole: nn.Module
    around: int
    blocks: tuple[int, ...]
    sublayer: int


@dataclass(frozen=True)
class Bounds:
    """Bytes for weights by accelerate's names of memories; the first is the device's. `said`: by the settings."""

    bytes: Mapping[Any, int]
    setting: str
    said: bool

    @property
    def main(self) -> Any:
        """The device's name."""
        return next(iter(self.bytes))


def inferred(cfg: DictConfig, device: torch.device, parts: Sequence[SpacePart]) -> Placement:
    """Blocks in their order to the device, then to the machine's memory, then to their files."""
    if importlib.util.find_spec("accelerate") is None:
        raise SettingError("stream=auto needs accelerate: pip install 'autoprune[placement]'")
    bounds, skeleton = _bounds(cfg, device), _skeleton(cfg, parts)
    total, have = skeleton.around + sum(skeleton.blocks), bounds.bytes[bounds.main]
    room = int(cfg.stream_mb) * MB
    if total <= have:
        told = f"placement: all {len(skeleton.blocks)} blocks, embeddings and head on {device}"
        return Placement(room, told=f"{told} ({_mb(total)} of {_mb(have)} MB)")
    check_fed(cfg, Placement(room), skeleton.sublayer, "ladders")
    least = skeleton.around + max(skeleton.blocks) + SUBLAYERS * skeleton.sublayer
    if have < least:
        given = f"{bounds.setting}={have // MB}"
        raise SettingError(
            f"{given if bounds.said else f'stream=auto: the {have // MB} MB that {device} has free'} are too few for "
            f"model={cfg.model}: embeddings and head, a block and {SUBLAYERS} sublayers on their way take "
            f"{_mb(least)} MB; allowed: {bounds.setting}={_mb(least)} or more"
        )
    room = min(room, have - skeleton.around - max(skeleton.blocks))
    found = _mapped(skeleton, {**bounds.bytes, bounds.main: have - room})
    where: dict[Any, Where] = {HOST: "host", "disk": "disk", bounds.main: "device"}
    blocks = {b: where[name] for b, name in enumerate(found)}
    return Placement(room, blocks=blocks, told=_told(blocks, device, skeleton, have))


def _mapped(skeleton: Skeleton, most: dict[Any, int]) -> list[Any]:
    """Where accelerate puts each block; beside what it puts on the device it leaves room for the largest block."""
    from accelerate import infer_auto_device_map

    kinds = [Block.__name__, Around.__name__]
    found = infer_auto_device_map(skeleton.whole, most, no_split_module_classes=kinds, clean_result=False)
    names = (("blocks", f"blocks.{at}") for at in range(len(skeleton.blocks)))
    return [next(found[name] for name in either if name in found) for either in names]


def _bounds(cfg: DictConfig, device: torch.device) -> Bounds:
    """Those of the settings, else what is free, less what the run holds of states."""
    from accelerate.utils import get_max_memory

    if device.type == "cpu" and cfg.device_mb is not None:
        raise SettingError(
            f"device_mb={cfg.device_mb} bounds a GPU's memory, and this run's device is the CPU; give host_mb"
        )
    free = {} if None not in (cfg.host_mb, cfg.device_mb) else get_max_memory()
    states = int(cfg.memory_mb) * MB

    def bound(setting: str, name: Any, less: int) -> int:
        given = cfg[setting]
        return max(0, int(free.get(name, 0)) - less) if given is None else int(given) * MB

    if device.type == "cpu":
        return Bounds({HOST: bound("host_mb", HOST, states)}, "host_mb", cfg.host_mb is not None)
    main = device.index or 0
    found = {main: bound("device_mb", main, states), HOST: bound("host_mb", HOST, 0)}
    return Bounds(found, "device_mb", cfg.device_mb is not None)


def _skeleton(cfg: DictConfig, parts: Sequence[SpacePart]) -> Skeleton:
    """Of the model that the settings name, with the ladders that they ask for.

    Raises SettingError for an adapter that does not say where its blocks are.
    """
    from accelerate import init_empty_weights
    from accelerate.utils import compute_module_sizes

    with init_empty_weights(include_buffers=True):
        model = blank_model(str(cfg.model), bool(cfg.trust_remote_code), cfg.adapter is not None)
    adapter = adapter_for(model, cfg.adapter)
    if not isinstance(adapter, Decoder):
        raise SettingError(
            "stream=auto needs an adapter made from autoprune's Decoder; allowed: stream=off, or disk"
        )
    options = {n: o for n, o in joint_options(parts, adapter.shape).items() if not is_mask(n)}
    ladders = footprints(adapter, options if cfg.calibration.ladder == "refit" else None)
    parent, _, name = adapter.layout.blocks.rpartition(".")
    blocks = list(model.get_submodule(adapter.layout.blocks))
    setattr(model.get_submodule(parent), name, nn.ModuleList())
    made = [Block(b, sum(f.whole for f in both)) for b, both in zip(blocks, ladders, strict=True)]
    whole = nn.Sequential(OrderedDict(around=Around(model), blocks=nn.ModuleList(made)))
    sizes = compute_module_sizes(whole)
    largest = max(f.at_work for both in ladders for f in both)
    return Skeleton(whole, sizes["around"], tuple(sizes[f"blocks.{at}"] for at in range(len(made))), largest)


def _told(blocks: Mapping[int, Where], device: torch.device, skeleton: Skeleton, have: int) -> str:
    """In a line."""
    resting = skeleton.around + sum(skeleton.blocks[b] for b, where in blocks.items() if where == "device")
    found = [f"embeddings and head on {device}"]
    for where, said in (("device", str(device)), ("host", "host memory"), ("disk", "disk")):
        of_these = [b for b, place in blocks.items() if place == where]
        if of_these:
            run = f"block {of_these[0]}" if len(of_these) == 1 else f"blocks {of_these[0]}-{of_these[-1]}"
            found.append(f"{run} {'on' if where == 'device' else 'from'} {said}")
    return f"placement: {', '.join(found)} ({_mb(resting)} of {_mb(have)} MB rest on {device})"


def _mb(size: int) -> str:
    """Rounded up."""
    return str(-(-size // MB))
