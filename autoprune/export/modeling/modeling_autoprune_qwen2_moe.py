# mypy: disable-error-code="no-untyped-call, misc"
"""A Qwen2-MoE whose blocks differ in size, in their number of experts too."""

from __future__ import annotations

from transformers import Qwen2MoeConfig, Qwen2MoeForCausalLM, Qwen2MoeModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneQwen2MoeConfig(MixedConfig, Qwen2MoeConfig):
    """Qwen2-MoE sizes with exceptions per block."""

    model_type = "autoprune_qwen2_moe"


class AutopruneQwen2MoeDecoderLayer(MixedBlock, Qwen2MoeDecoderLayer):
    """One block with its own sizes."""


class AutopruneQwen2MoeModel(MixedModel, Qwen2MoeModel):
    """The stack of blocks."""

    config_class = AutopruneQwen2MoeConfig
    block = AutopruneQwen2MoeDecoderLayer
    output = MoeModelOutputWithPast


class AutopruneQwen2MoeForCausalLM(MixedForCausalLM, Qwen2MoeForCausalLM):
    """`Qwen2MoeForCausalLM` over blocks of different sizes."""

    config_class = AutopruneQwen2MoeConfig
    stack = AutopruneQwen2MoeModel
