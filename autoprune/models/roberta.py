"""The RoBERTa family: a BERT whose positions count from the padding token's id on, with a classifier of two layers."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor
from transformers import RobertaForSequenceClassification

from autoprune.export.modeling.modeling_autoprune_roberta import AutopruneRobertaForSequenceClassification
from autoprune.models.bert import BertAdapter


class RobertaAdapter(BertAdapter):
    """Runs and slices a `RobertaForSequenceClassification`."""

    layout = replace(
        BertAdapter.layout,
        stock=RobertaForSequenceClassification,
        mixed=AutopruneRobertaForSequenceClassification,
        blocks="roberta.encoder.layer",
    )
    base = "roberta"

    def classify(self, hidden: Tensor) -> Tensor:
        """The classifier reads the first token itself."""
        return self.model.classifier(hidden)  # type: ignore[no-any-return]
