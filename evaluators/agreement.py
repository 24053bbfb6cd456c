"""How often the plan's likeliest next token is the dense model's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor

from autoprune.evaluation import Batch, Context, mean_scored
from evaluators.dense import DenseBatch


class Agreement:
    """`agreement`: share of positions at which plan and dense model would choose the same next token.

    `disagreement` is what is missing to 1: the form that a search can make small.
    """

    metrics = ("agreement", "disagreement")
    larger_is_better = ("agreement",)
    needs: Literal["supernet"] = "supernet"
    reads = ("text", "sentences", "images")

    def __init__(self) -> None:
        self._dense = DenseBatch(lambda logits: logits.argmax(-1))

    def bind(self, context: Context) -> None:
        """Remember where the dense logits come from."""
        self._dense.bind(context)

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Share of each sequence, fp64 [B]; logits [B, T, V] or [B, classes]; NaN where they are not finite."""
        same = logits.argmax(-1) == self._dense.of(batch)
        share = mean_scored(same, batch) + 0.0 * logits.flatten(1).sum(-1).double()
        return {"agreement": share, "disagreement": 1.0 - share}
