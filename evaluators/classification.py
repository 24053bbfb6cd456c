"""Whether items get their own label."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.errors import DataError
from autoprune.evaluation import Batch, Context


class Classification:
    """`accuracy`, `macro_f1`, recalls and `calibration_error` of a classifier on items with labels.

    `error_rate` and `cross_entropy` are means over items, the forms that a search can make small; the others are of all
    items together.
    """

    metrics = ("error_rate", "cross_entropy", "calibration_error", "accuracy", "macro_f1")
    larger_is_better = ("accuracy", "macro_f1")
    smaller_form = "error_rate"
    needs: Literal["supernet"] = "supernet"
    reads = ("sentences", "images")

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Values of each item, fp64 [B]; logits [B, classes]."""
        if batch.labels is None:
            raise DataError(f"split {batch.split.value} has no labels; evaluator=classification needs them")
        confidence, predicted = torch.softmax(logits.double(), -1).max(-1)
        finite = 0.0 * logits.double().sum(-1)  # a prediction from NaN is none
        return {
            "error_rate": (predicted != batch.labels).double() + finite,
            "cross_entropy": functional.cross_entropy(logits.double(), batch.labels, reduction="none"),
            "label": batch.labels.double(),
            "predicted": predicted.double(),
            "confidence": confidence + finite,
        }
