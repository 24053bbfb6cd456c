"""Activation distance: how differently the FFNs of a plan answer to different tokens."""

from __future__ import annotations

from torch import Tensor

from autoprune.models.base import Adapter, State, Weights
from autoprune.space import Kind
from evaluators.watched import Watched


class ActivationDistance(Watched):
    """`activation_distance`: mean Hamming distance between the sign patterns that two tokens leave in the FFNs.

    Counted in units over all FFNs of a plan, mean over the pairs of tokens of a sequence (Mellor et al. 2021 compare
    whole inputs).
    """

    metrics = ("activation_distance",)
    larger_is_better = metrics

    @staticmethod
    def look(
        adapter: Adapter, block: int, kind: Kind, before: State, after: State, weights: Weights
    ) -> Tensor | None:
        """Of one FFN, fp64 [B]; the FFN runs once more for it."""
        if kind != "ffn":
            return None
        active = (adapter.inner(block, kind, before, weights) > 0).sum(1).double()  # [B, width] tokens
        tokens = before.hidden.shape[1]
        return (2 * active * (tokens - active)).sum(-1) / (tokens * (tokens - 1))  # of ordered pairs
