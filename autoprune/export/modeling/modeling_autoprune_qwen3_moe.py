# mypy: disable-error-code="no-untyped-call, misc"
"""A Qwen3-MoE whose blocks differ in size, in their number of experts too."""

from __future__ import annotations

from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM, Qwen3MoeModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneQwen3MoeConfig(MixedConfig, Qwen3MoeConfig):
    """Qwen3-MoE sizes with exceptions per block."""

    model_type = "autoprune_qwen3_moe"


class AutopruneQwen3MoeDecoderLayer(MixedBlock, Qwen3MoeDecoderLayer):
    """One block with its own sizes."""


class AutopruneQwen3MoeModel(MixedModel, Qwen3MoeModel):
    """The stack of blocks."""

    config_class = AutopruneQwen3MoeConfig
    block = AutopruneQwen3MoeDecoderLayer
    output = MoeModelOutputWithPast


class AutopruneQwen3MoeForCausalLM(MixedForCausalLM, Qwen3MoeForCausalLM):
    """`Qwen3MoeForCausalLM` over blocks of different sizes."""

    config_class = AutopruneQwen3MoeConfig
    stack = AutopruneQwen3MoeModel
