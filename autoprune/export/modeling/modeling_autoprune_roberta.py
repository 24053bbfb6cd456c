# mypy: disable-error-code="no-untyped-call, misc"
"""A RoBERTa whose blocks differ in size: `num_attention_heads` sets a head's size, `kept_heads` how many are left."""

from __future__ import annotations

from transformers import RobertaConfig, RobertaForSequenceClassification
from transformers.models.roberta.modeling_roberta import RobertaLayer

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderConfig
from .modeling_autoprune_postnorm import PostNormBlock


class AutopruneRobertaConfig(MixedEncoderConfig, RobertaConfig):
    """RoBERTa sizes with exceptions per block."""

    model_type = "autoprune_roberta"


class AutopruneRobertaLayer(PostNormBlock, RobertaLayer):
    """One block with its own sizes."""


class AutopruneRobertaForSequenceClassification(MixedEncoder, RobertaForSequenceClassification):
    """`RobertaForSequenceClassification` over blocks of different sizes."""

    config_class = AutopruneRobertaConfig
    block, place = AutopruneRobertaLayer, "roberta.encoder.layer"
