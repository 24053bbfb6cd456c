"""A fixed piece of work timed in every round: it tells which rounds, and which machines, to trust."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from autoprune.errors import MeasurementError

CONTENDED = 1.3  # median over minimum
DIRTY = 1.15  # one round over the 20th percentile


def work(device: str = "cpu") -> Callable[[], None]:
    """A small matrix product and one pass over 32 MB, on fixed data."""
    matrix = torch.linspace(-1, 1, 256 * 256, device=device).reshape(256, 256)
    stream = torch.linspace(-1, 1, 1 << 23, device=device)

    def call() -> None:
        torch.mm(matrix, matrix)
        stream.sum()

    return call


@dataclass(frozen=True)
class Sentinel:
    """The sentinel's seconds, one per round, and what follows from them.

    By a processor-time clock they show that other programs slow the memory down; that they take turns on the
    processor is seen in the interruptions.
    """

    seconds: tuple[float, ...]

    @property
    def spread(self) -> float:
        """Median over minimum; 1 on a quiet machine."""
        smallest = min(self.seconds)
        return float(np.median(self.seconds)) / smallest if smallest > 0 else float("inf")

    @cached_property
    def clean(self) -> tuple[int, ...]:
        """The rounds whose reading is within 1.15x of the 20th percentile."""
        limit = DIRTY * float(np.percentile(self.seconds, 20))
        return tuple(i for i, value in enumerate(self.seconds) if value <= limit)

    @property
    def contended(self) -> str:
        """Why the machine is too busy to measure on, or an empty string."""
        if self.spread > CONTENDED:
            return f"sentinel p50/min = {self.spread:.2f}, allowed {CONTENDED}"
        if 2 * len(self.clean) < len(self.seconds):
            return f"{len(self.clean)} of {len(self.seconds)} rounds have a quiet sentinel, half of them must"
        return ""

    def kept(self, allow_contended: bool = False) -> tuple[int, ...]:
        """Rounds to use, in order; of a contended machine the quieter half, or MeasurementError."""
        if not self.contended:
            return self.clean
        if not allow_contended:
            raise MeasurementError(f"measurement refused: the machine is busy ({self.contended})")
        order = sorted(range(len(self.seconds)), key=self.seconds.__getitem__)
        return tuple(sorted(order[: (len(order) + 1) // 2]))
