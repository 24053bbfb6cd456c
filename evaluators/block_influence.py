"""Block influence: how far the sublayers of a plan turn the hidden states."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from autoprune.models.base import Adapter, State, Weights
from autoprune.space import Kind
from evaluators.watched import Watched


class BlockInfluence(Watched):
    """`block_influence`: 1 - cos(hidden state before, after), mean over tokens, summed over a plan's sublayers.

    The score of ShortGPT (Men et al. 2024), taken of sublayers and in the plan's own stream. A proxy without a
    direction of its own.
    """

    metrics = ("block_influence",)

    @staticmethod
    def look(
        adapter: Adapter, block: int, kind: Kind, before: State, after: State, weights: Weights
    ) -> Tensor:
        """Of one sublayer, fp64 [B]."""
        cosine = functional.cosine_similarity(before.hidden.double(), after.hidden.double(), dim=-1)
        return 1.0 - cosine.mean(-1)
