# mypy: disable-error-code="no-untyped-call, misc"
"""A BERT whose blocks differ in size: `num_attention_heads` sets the size of a head, `kept_heads` how many are left."""

from __future__ import annotations

from transformers import BertConfig, BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertLayer

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderConfig
from .modeling_autoprune_postnorm import PostNormBlock


class AutopruneBertConfig(MixedEncoderConfig, BertConfig):
    """BERT sizes with exceptions per block."""

    model_type = "autoprune_bert"


class AutopruneBertLayer(PostNormBlock, BertLayer):
    """One block with its own sizes."""


class AutopruneBertForSequenceClassification(MixedEncoder, BertForSequenceClassification):
    """`BertForSequenceClassification` over blocks of different sizes."""

    config_class = AutopruneBertConfig
    block, place = AutopruneBertLayer, "bert.encoder.layer"
