"""How tensors get to a device while it works: through pinned memory, on a stream beside that of the work."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """Copies on their way, with the event behind them where there is something to wait for."""

    tensors: Tensors
    arrived: Any = None

    def received(self) -> Tensors:
        """The copies; what the device is given to do from now on waits for them, the program does not."""
        if self.arrived is not None:
            device = next(iter(self.tensors.values())).device
            at_work = torch.cuda.current_stream(device)
            at_work.wait_event(self.arrived)
            for tensor in self.tensors.values():
                tensor.record_stream(at_work)  # or its memory might be used again before the work is done
        return self.tensors


class Link:
    """The way to one device; to the CPU it copies, with the same strides."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None

    def send(self, source: Mapping[str, Tensor]) -> Sent:
        """Copies of some tensors on the device."""
        if self._device.type == "cpu":
            return Sent({n: t.clone(memory_format=torch.preserve_format) for n, t in source.items()})
        if self._stream is None:
            return Sent({n: t.to(self._device) for n, t in source.items()})
        with torch.cuda.stream(self._stream):
            found = {n: pinned(t).to(self._device, non_blocking=True) for n, t in source.items()}
            arrived: Any = torch.cuda.Event()
            arrived.record(self._stream)
        return Sent(found, arrived if found else None)


def pinned(tensor: Tensor) -> Tensor:
    """The tensor in memory that the system does not move, from which a GPU reads by itself; strides stay."""
    return tensor if tensor.is_pinned() else tensor.pin_memory()
