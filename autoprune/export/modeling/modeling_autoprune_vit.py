# mypy: disable-error-code="no-untyped-call, misc"
"""A ViT whose blocks differ in size."""

from __future__ import annotations

from transformers import ViTConfig, ViTForImageClassification
from transformers.models.vit.modeling_vit import ViTLayer

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderConfig
from .modeling_autoprune_prenorm import PreNormBlock


class AutopruneViTConfig(MixedEncoderConfig, ViTConfig):
    """ViT sizes with exceptions per block."""

    model_type = "autoprune_vit"


class AutopruneViTLayer(PreNormBlock, ViTLayer):
    """One block with its own sizes."""


class AutopruneViTForImageClassification(MixedEncoder, ViTForImageClassification):
    """`ViTForImageClassification` over blocks of different sizes."""

    config_class = AutopruneViTConfig
    block, place = AutopruneViTLayer, "vit.layers"
