# mypy: disable-error-code="no-untyped-call, misc"
"""A Mistral whose blocks differ in size."""

from __future__ import annotations

from transformers import MistralConfig, MistralForCausalLM, MistralModel
from transformers.models.mistral.modeling_mistral import MistralDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneMistralConfig(MixedConfig, MistralConfig):
    """Mistral sizes with exceptions per block."""

    model_type = "autoprune_mistral"


class AutopruneMistralDecoderLayer(MixedBlock, MistralDecoderLayer):
    """One block with its own sizes."""


class AutopruneMistralModel(MixedModel, MistralModel):
    """The stack of blocks."""

    config_class = AutopruneMistralConfig
    block = AutopruneMistralDecoderLayer


class AutopruneMistralForCausalLM(MixedForCausalLM, MistralForCausalLM):
    """`MistralForCausalLM` over blocks of different sizes."""

    config_class = AutopruneMistralConfig
    stack = AutopruneMistralModel
