"""Second moments of what enters an output projection: all that ranking and refitting need to know of the text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.errors import SettingError


@dataclass(frozen=True)
class Moments:
    """`second` = sum over tokens of x x^T [d, d], `cross` = sum of x y^T [d, out], `total` = sum of x [d]; fp64.

    x enters the output projection, y is what the projection should give. Each chunk's products are fp32, their sum
    over chunks is fp64 and runs in chunk order.
    """

    second: Tensor
    cross: Tensor
    total: Tensor
    count: Tensor  # of tokens

    @staticmethod
    def zeros(inputs: int, outputs: int, device: torch.device | None = None) -> Moments:
        """Of no tokens."""
        wide = torch.float64
        sizes: tuple[tuple[int, ...], ...] = ((inputs, inputs), (inputs, outputs), (inputs,), ())
        return Moments(*(torch.zeros(size, dtype=wide, device=device) for size in sizes))

    def add(self, inner: Tensor, wanted: Tensor | None = None) -> None:
        """Take in one chunk: inner [B, T, d] and, for `cross`, wanted [B, T, out]."""
        x = inner.reshape(-1, inner.shape[-1])
        self.second.add_(x.t() @ x)
        self.total.add_(x.double().sum(0))
        self.count.add_(len(x))
        if wanted is not None:
            self.cross.add_(x.t() @ wanted.reshape(-1, wanted.shape[-1]))

    def damped(self, damping: float) -> tuple[Tensor, float]:
        """`second` plus damping x its mean diagonal on the diagonal, and what was added."""
        mean = float(self.second.diagonal().mean())
        added = damping * mean if mean > 0 else 1.0
        eye = torch.eye(len(self.second), dtype=self.second.dtype, device=self.second.device)
        return self.second + added * eye, added


@contextmanager
def regular(damping: float) -> Iterator[None]:
    """Say which setting helps when moments cannot be inverted: few tokens, or units that are never active."""
    try:
        yield
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise SettingError(
            f"calibration.damping={damping:g} leaves moments that cannot be inverted; give a larger one (0.001 is the "
            "default), or more calibration.tokens"
        ) from error
