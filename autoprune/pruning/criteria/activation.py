"""Activation-aware importance: the energy a unit contributes to its sublayer's output."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.models.base import Units, Weights
from autoprune.space import Kind


class Activation:
    """Score of unit u = sum over tokens of |W_u x_u|^2, x_u being u's slice of the output projection's input.

    For single columns this is |W_u|^2 * sum x_u^2 (the squared form of Wanda's |W| * |X|); for KV groups the slices are
    several columns wide and their correlations count. Sums run in fp64 over fixed chunks, in chunk order.
    """

    def __init__(self, kind: Kind, units: Units, weights: Weights) -> None:
        self._out = weights["o" if kind == "attention" else "down"]
        self._units = units
        self._size = self._out.shape[1] // units.count
        self._moment = torch.zeros(units.count, self._size, self._size, dtype=torch.float64)

    def add(self, inner: Tensor) -> None:
        """Take in one chunk of output-projection inputs [B, T, units x size]."""
        x = inner.reshape(-1, self._units.count, self._size)
        if self._size == 1:
            self._moment += x.double().square().sum(0)[..., None]
        else:
            x = x.double()
            self._moment += torch.einsum("nua,nub->uab", x, x)

    def scores(self) -> Tensor:
        """Importance [units], larger is more important."""
        columns = self._out.double().reshape(self._out.shape[0], self._units.count, self._size)
        gram = torch.einsum("dua,dub->uab", columns, columns)
        return (gram * self._moment).sum((1, 2))
