"""What the engine asks of a model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from autoprune.shape import Shape
from autoprune.space import Kind, Plan, SublayerPlan

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class State:
    """Hidden states on their way through the blocks; never written into."""

    hidden: Tensor  # [B, T, d]
    positions: Tensor  # [B or 1, T] position of each token for the position encoding
    kept: Tensor | None = None  # [B, T] index into the original tokens; None: all of them
    valid: Tensor | None = None  # [B, T] False at padding; None: no padding
    sizes: Tensor | None = None  # [B, T] merged mass of each token; None: one each
    prompt_len: int | None = None  # tokens read at once, before any is decoded; None: all of them
    alive: Tensor | None = None  # [B, steps, prompt_len] prompt tokens that each step has in sight; None: all
    rope: tuple[Tensor, Tensor] | None = None  # cosine and sine at `positions`, shared by all blocks


@dataclass(frozen=True)
class Units:
    """The units of a site: unit u owns u*size..(u+1)*size along one dimension of each named tensor.

    A matrix has rows (dim 0) and columns (dim 1); in a stack of experts they are dims 1 and 2.
    """

    count: int
    slices: Mapping[str, tuple[int, int]]  # tensor name -> (dim, size)

    def take(self, weights: Weights, order: Tensor) -> dict[str, Tensor]:
        """Weights of the units in `order` (unit indices [n]); tensors without slices are passed through."""
        taken = {}
        for name, tensor in weights.items():
            if name in self.slices:
                dim, size = self.slices[name]
                index = (order[:, None] * size + torch.arange(size, device=order.device)).flatten()
                tensor = tensor.index_select(dim, index.to(tensor.device))
            taken[name] = tensor
        return taken

    def prefix(self, weights: Weights, count: int) -> dict[str, Tensor]:
        """Zero-copy views of the first `count` units."""
        return {
            name: tensor.narrow(self.slices[name][0], 0, count * self.slices[name][1])
            if name in self.slices
            else tensor
            for name, tensor in weights.items()
        }


class Adapter(Protocol):
    """The block stream of one family, and how its sublayers are sliced."""

    model: Any
    shape: Shape
    prompt_len: int | None  # of the states that `embed` makes
    fed: Mapping[tuple[int, Kind], Weights] | None  # what `weights` gives where blocks wait elsewhere

    def embed(self, ids: Tensor) -> State:
        """Token ids [B, T] (negative at padding) or pixels [B, C, H, W], on any device, to the state before block 0."""

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the stock model is called with, for the same."""

    def entering(self, block: int, kind: Kind, state: State, weights: Weights) -> Tensor:
        """What enters the sublayer's first matrices, [B, T, d]."""

    def inner(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """What enters the sublayer's output projection, [B, T, units x size]: the criteria rank this."""

    def run_sublayer(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> State:
        """One sublayer with these (sliced) weights, residual included; never writes into its input.

        `plan` holds what weights do not say, such as experts per token; None: as in the dense model.
        """

    def summed(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """The residual plus what the sublayer adds to it, [B, T, d], before any norm that follows."""

    def head(self, state: State) -> Tensor:
        """Logits [B, T, vocabulary], or [B, classes] of a classifier."""

    def weights(self, block: int, kind: Kind) -> Weights:
        """The dense model's own weights of a sublayer, by the names `units` uses."""

    def units(self, kind: Kind) -> Units:
        """The units of a sublayer of this kind, with their coupled slices."""

    def unit_setting(self, kind: Kind) -> str:
        """The plan setting that counts the kept units of this kind."""

    def all_units(self, kind: Kind) -> Mapping[str, Units]:
        """The units of every plan setting that counts some: those of `units`, and the experts behind a router."""

    def install(self, plan: Plan, weights: SublayerWeights, dtype: torch.dtype) -> Any:
        """The physically smaller model."""


class SublayerWeights(Protocol):
    """The weights a plan's sublayer runs with."""

    def __call__(self, block: int, plan: SublayerPlan) -> Weights:
        """Weights of one sublayer that is not gone."""


def added(out: Tensor, hidden: Tensor) -> Tensor:
    """A sublayer's output, which is not used again, on the residual stream: in its dtype, whatever that of `out`."""
    return out.add_(hidden) if out.dtype == hidden.dtype else hidden + out
