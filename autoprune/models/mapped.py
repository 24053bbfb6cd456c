"""Tensors that a file holds: memory-mapped, so that the system reads what is used, and can forget it at once."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

MAPS = Path("/proc/self/maps")
ENDING = ".safetensors"
WILL_NEED = 3  # of madvise(2): read ahead
FORGET = 4  # of madvise(2): the pages go; what is read again comes from the file


class Ranges:
    """Where files of tensors are mapped in this process, as of now."""

    def __init__(self) -> None:
        self._spans: list[tuple[int, int]] = []
        lines = MAPS.read_text().splitlines() if MAPS.is_file() else []
        for line in lines:
            first, _, last = line.partition(" ")[0].partition("-")
            if line.endswith(ENDING):
                self._spans.append((int(first, 16), int(last, 16)))

    def hold(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in such a file."""
        start, stop = _span(tensor)
        return any(first <= start and stop <= last for first, last in self._spans)

    def forget(self, tensors: Iterable[Tensor]) -> None:
        """Let go of the memory of mapped tensors; others are left alone."""
        self._advise(tensors, FORGET)

    def fetch(self, tensors: Iterable[Tensor]) -> None:
        """Let the system read mapped tensors ahead."""
        self._advise(tensors, WILL_NEED)

    def _advise(self, tensors: Iterable[Tensor], advice: int) -> None:
        for tensor in tensors:
            if not self._spans or tensor.device.type != "cpu" or not self.hold(tensor):
                continue
            start, stop = _span(tensor)
            if advice == FORGET:  # whole pages of its own: what lies beside it may be in use
                first, last = -(-start // mmap.PAGESIZE), stop // mmap.PAGESIZE
            else:
                first, last = start // mmap.PAGESIZE, -(-stop // mmap.PAGESIZE)
            if last > first:
                size = (last - first) * mmap.PAGESIZE
                ctypes.CDLL(None).madvise(
                    ctypes.c_void_p(first * mmap.PAGESIZE), ctypes.c_size_t(size), ctypes.c_int(advice)
                )


def _span(tensor: Tensor) -> tuple[int, int]:
    """First byte and the one after the last; views may have gaps."""
    start = tensor.data_ptr()
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) + 1
    return start, start + (reach * tensor.element_size() if tensor.numel() else 0)


def resident(kind: str = "VmRSS") -> int:
    """Bytes of memory that this process has now (`VmRSS`) or had at most (`VmHWM`); 0 where the system does not say."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.is_file() else []
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith(f"{kind}:")), 0)
