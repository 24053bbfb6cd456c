"""The DistilBERT family: a BERT without segments and pooler, whose classifier has a layer before it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import DistilBertForSequenceClassification

from autoprune.export.modeling.modeling_autoprune_distilbert import (
    AutopruneDistilBertForSequenceClassification,
)
from autoprune.models.encoder import SentenceEncoder
from autoprune.models.layout import Layout


class DistilBertAdapter(SentenceEncoder):
    """Runs and slices a `DistilBertForSequenceClassification`; every head is a KV group of its own."""

    layout = Layout(
        DistilBertForSequenceClassification,
        AutopruneDistilBertForSequenceClassification,
        attention={
            "attention.q_lin": ("q",),
            "attention.k_lin": ("k",),
            "attention.v_lin": ("v",),
            "attention.out_lin": ("o",),
            "sa_layer_norm": ("norm",),
        },
        ffn={"ffn.lin1": ("up",), "ffn.lin2": ("down",), "output_layer_norm": ("norm",)},
        blocks="distilbert.transformer.layer",
        final_norm="",
        activation="activation",
        eps=None,
        heads="kept_heads",
        groups=None,
        width="hidden_dim",
        fixed_heads=True,
        auto="AutoModelForSequenceClassification",
        post_norm=True,
    )
    base = "distilbert"

    def scale(self, block: Any) -> float:
        """Of the head size that the model was made with."""
        return float(block.attention.scaling)

    def classify(self, hidden: Tensor) -> Tensor:
        """Two layers on the [CLS] token."""
        found = functional.relu(self.model.pre_classifier(hidden[:, 0]))
        return self.model.classifier(found)  # type: ignore[no-any-return]

    def outside_flops(self) -> int:
        """Both layers."""
        return 2 * self.shape.hidden * (self.shape.hidden + self.shape.classes)
