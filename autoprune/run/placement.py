"""Where a model's weights rest while a run works: on its device, in the machine's memory, or in their files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from autoprune.errors import SettingError, nearest

if TYPE_CHECKING:
    import torch
    from omegaconf import DictConfig

    from autoprune.sublayers import SpacePart

Where = Literal["device", "host", "disk"]
STREAMS = ("off", "disk", "host", "auto")
BOUNDS = ("device_mb", "host_mb")  # of what `auto` places
SUBLAYERS = 2  # one that is at work, and one that is read meanwhile


@dataclass(frozen=True)
class Placement:
    """Where the weights of blocks rest, `others` where `blocks` says nothing; all else is on the device.

    room: bytes of the device for what is fed; told: what was decided, in a line.
    """

    room: int
    others: Where = "device"
    blocks: Mapping[int, Where] = field(default_factory=dict)
    told: str = ""

    @property
    def rests(self) -> bool:
        """Whether everything is on the device."""
        return {self.others, *self.blocks.values()} == {"device"}

    @property
    def maps(self) -> bool:
        """Whether some blocks stay in their files."""
        return "disk" in (self.others, *self.blocks.values())

    def at(self, where: Where, blocks: int) -> frozenset[int]:
        """Those of so many blocks that rest there."""
        return frozenset(b for b in range(blocks) if self.blocks.get(b, self.others) == where)


def check_stream_settings(cfg: DictConfig) -> None:
    """Raise SettingError for an unknown way, and for bounds that it does not go by."""
    if cfg.stream not in STREAMS:
        raise SettingError(f"stream={cfg.stream} is unknown" + nearest(str(cfg.stream), STREAMS))
    for name in BOUNDS:
        if cfg.get(name) is not None and cfg.stream != "auto":
            raise SettingError(
                f"{name}={cfg[name]} bounds what stream=auto places, and stream={cfg.stream} places nothing"
            )
    if cfg.stream == "auto" and cfg.hidden is not None:
        raise SettingError(f"hidden={cfg.hidden} makes a model in memory; it does not go with stream=auto")


def placement_of(cfg: DictConfig, device: torch.device, parts: Sequence[SpacePart]) -> Placement:
    """What `stream=` says; for `auto` accelerate decides within the bounds, before any weight is read.

    Raises SettingError where not even one block fits beside what is at work.
    """
    if cfg.stream == "auto":
        from autoprune.run.inferred import inferred

        return inferred(cfg, device, parts)
    rests = cfg.stream == "off" or (cfg.stream == "host" and device.type == "cpu")
    return Placement(int(cfg.stream_mb) << 20, "device" if rests else cfg.stream)


def check_fed(cfg: DictConfig, placement: Placement, largest: int, what: str) -> None:
    """Raise SettingError where two sublayers do not fit into the room for what is fed."""
    if placement.room < SUBLAYERS * largest:
        least = -(-SUBLAYERS * largest >> 20)
        raise SettingError(
            f"stream_mb={cfg.stream_mb} is too small: {SUBLAYERS} sublayers of this model's {what} take {least} MB"
        )
