# mypy: disable-error-code="no-untyped-call, misc"
"""A Gemma whose blocks differ in size."""

from __future__ import annotations

from transformers import GemmaConfig, GemmaForCausalLM, GemmaModel
from transformers.models.gemma.modeling_gemma import GemmaDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneGemmaConfig(MixedConfig, GemmaConfig):
    """Gemma sizes with exceptions per block."""

    model_type = "autoprune_gemma"


class AutopruneGemmaDecoderLayer(MixedBlock, GemmaDecoderLayer):
    """One block with its own sizes."""


class AutopruneGemmaModel(MixedModel, GemmaModel):
    """The stack of blocks."""

    config_class = AutopruneGemmaConfig
    block = AutopruneGemmaDecoderLayer


class AutopruneGemmaForCausalLM(MixedForCausalLM, GemmaForCausalLM):
    """`GemmaForCausalLM` over blocks of different sizes."""

    config_class = AutopruneGemmaConfig
    stack = AutopruneGemmaModel
