"""Head confidence: how sharply the heads of a plan look."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from autoprune.errors import UnsupportedModelError
from autoprune.models.base import Adapter, State, Weights
from autoprune.space import Kind
from evaluators.watched import Watched


class HeadConfidence(Watched):
    """`head_confidence`: a head's largest attention weight, mean over tokens, summed over the heads of a plan.

    From the metrics of Serianni and Kalita (2023).
    """

    metrics = ("head_confidence",)
    larger_is_better = metrics

    @staticmethod
    def look(
        adapter: Adapter, block: int, kind: Kind, before: State, after: State, weights: Weights
    ) -> Tensor | None:
        """Of one attention, fp64 [B]; queries and keys are computed once more for it."""
        if kind != "attention":
            return None
        attention: Any = getattr(adapter, "attention", None)
        if attention is None:
            raise UnsupportedModelError(
                f"evaluator=head_confidence needs attention weights; {type(adapter).__name__} has no `attention`"
            )
        weight: Tensor = attention(block, before, weights)
        return weight.amax(-1).double().mean(-1).sum(-1)
