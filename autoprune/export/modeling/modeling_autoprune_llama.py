# mypy: disable-error-code="no-untyped-call, misc"
"""A Llama whose blocks differ in size."""

from __future__ import annotations

from transformers import LlamaConfig, LlamaForCausalLM, LlamaModel
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneLlamaConfig(MixedConfig, LlamaConfig):
    """Llama sizes with exceptions per block."""

    model_type = "autoprune_llama"


class AutopruneLlamaDecoderLayer(MixedBlock, LlamaDecoderLayer):
    """One block with its own sizes."""


class AutopruneLlamaModel(MixedModel, LlamaModel):
    """The stack of blocks."""

    config_class = AutopruneLlamaConfig
    block = AutopruneLlamaDecoderLayer


class AutopruneLlamaForCausalLM(MixedForCausalLM, LlamaForCausalLM):
    """`LlamaForCausalLM` over blocks of different sizes."""

    config_class = AutopruneLlamaConfig
    stack = AutopruneLlamaModel
