# mypy: disable-error-code="no-untyped-call, misc"
"""A DeiT whose blocks differ in size."""

from __future__ import annotations

from transformers import DeiTConfig, DeiTForImageClassification, DeiTForImageClassificationWithTeacher
from transformers.models.deit.modeling_deit import DeiTLayer

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderConfig
from .modeling_autoprune_prenorm import PreNormBlock


class AutopruneDeiTConfig(MixedEncoderConfig, DeiTConfig):
    """DeiT sizes with exceptions per block."""

    model_type = "autoprune_deit"


class AutopruneDeiTLayer(PreNormBlock, DeiTLayer):
    """One block with its own sizes."""

    specials = 2


class AutopruneDeiTForImageClassification(MixedEncoder, DeiTForImageClassification):
    """`DeiTForImageClassification` over blocks of different sizes."""

    config_class = AutopruneDeiTConfig
    block, place = AutopruneDeiTLayer, "deit.layers"


class AutopruneDeiTForImageClassificationWithTeacher(MixedEncoder, DeiTForImageClassificationWithTeacher):
    """The same with the classifier of the distillation token."""

    config_class = AutopruneDeiTConfig
    block, place = AutopruneDeiTLayer, "deit.layers"
