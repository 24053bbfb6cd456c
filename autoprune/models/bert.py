"""The BERT family: norms after each sublayer, learned positions, a pooler between [CLS] token and classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import BertForSequenceClassification

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_bert import AutopruneBertForSequenceClassification
from autoprune.models.encoder import SentenceEncoder
from autoprune.models.layout import Layout, Modules

ATTENTION: Modules = {
    "attention.self.query": ("q",),
    "attention.self.key": ("k",),
    "attention.self.value": ("v",),
    "attention.output.dense": ("o",),
    "attention.output.LayerNorm": ("norm",),
}
FFN: Modules = {
    "intermediate.dense": ("up",),
    "output.dense": ("down",),
    "output.LayerNorm": ("norm",),
}


class BertAdapter(SentenceEncoder):
    """Runs and slices a `BertForSequenceClassification`; every head is a KV group of its own."""

    layout = Layout(
        BertForSequenceClassification,
        AutopruneBertForSequenceClassification,
        ATTENTION,
        FFN,
        blocks="bert.encoder.layer",
        final_norm="",
        eps=None,
        heads="kept_heads",
        groups=None,
        fixed_heads=True,
        auto="AutoModelForSequenceClassification",
        post_norm=True,
    )
    base = "bert"

    def check(self, config: Any) -> None:
        """Refuses decoders."""
        super().check(config)
        if config.is_decoder:
            raise UnsupportedModelError(
                f"{config.model_type} with is_decoder=true is not supported, only false"
            )

    def scale(self, block: Any) -> float:
        """Of the head size that the model was made with."""
        return float(block.attention.self.scaling)

    def classify(self, hidden: Tensor) -> Tensor:
        """The pooler reads the [CLS] token."""
        return self.model.classifier(self.model.bert.pooler(hidden))  # type: ignore[no-any-return]

    def outside_flops(self) -> int:
        """Pooler and classifier."""
        return 2 * self.shape.hidden * (self.shape.hidden + self.shape.classes)
