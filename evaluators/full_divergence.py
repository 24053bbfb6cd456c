"""KL divergence from the dense model over the whole vocabulary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from autoprune.evaluation import Batch, Context, mean_scored
from evaluators.dense import DenseBatch


class FullDivergence:
    """`kl_full`: mean over tokens of KL(dense || plan) in nats over all tokens, in fp64.

    Nothing is stored: the dense model runs again on every batch. `divergence` is the cheap form for searches.
    """

    metrics = ("kl_full",)
    needs: Literal["supernet"] = "supernet"
    reads = ("text", "sentences", "images")

    def __init__(self) -> None:
        self._dense = DenseBatch(torch.clone)

    def bind(self, context: Context) -> None:
        """Remember where the dense logits come from."""
        self._dense.bind(context)

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Mean KL of each sequence, fp64 [B]; logits [B, T, V]."""
        rows = zip(self._dense.of(batch), logits, strict=True)
        return {"kl_full": mean_scored(torch.stack([_kl(dense, plan) for dense, plan in rows]), batch)}


def _kl(dense: Tensor, plan: Tensor) -> Tensor:
    """Of the tokens [T] of one sequence [T, V]: fp64 of a whole batch would be too large."""
    p, q = torch.log_softmax(dense.double(), -1), torch.log_softmax(plan.double(), -1)
    return (p.exp() * (p - q)).sum(-1)
