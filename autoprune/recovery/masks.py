"""Zeros that stay zeros: a pruned weight must not come back while the rest is trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Masks:
    """Where the weights of a model were exactly zero when this was made: single ones, rows, columns or blocks.

    Matrices only, and of a bias the entries whose row is zero throughout; a norm or a bias that merely starts at zero
    is free to move.
    """

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        self._keep: dict[str, Tensor] = {}
        for name, weight in named.items():
            zero = weight.detach() == 0
            if weight.ndim < 2 or not bool(zero.any()):
                continue
            self._keep[name] = ~zero
            bias = name.removesuffix("weight") + "bias"
            gone = zero.flatten(1).all(1)
            if bias in named and bool(gone.any()):
                self._keep[bias] = ~(gone & (named[bias].detach() == 0))

    def __len__(self) -> int:
        """Weights that stay zero."""
        return sum(int((~keep).sum()) for keep in self._keep.values())

    def on_gradients(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set the gradients of masked weights to zero, so that neither the clipping nor the moments see them."""
        for name, keep in self._keep.items():
            gradient = parameters[name].grad
            if gradient is not None:
                gradient.mul_(keep)

    @torch.no_grad()
    def on_weights(self, parameters: Mapping[str, nn.Parameter]) -> None:
        """Set masked weights to zero, whatever the step did to them."""
        for name, keep in self._keep.items():
            parameters[name].mul_(keep)
