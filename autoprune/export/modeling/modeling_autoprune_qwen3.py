# mypy: disable-error-code="no-untyped-call, misc"
"""A Qwen3 whose blocks differ in size."""

from __future__ import annotations

from transformers import Qwen3Config, Qwen3ForCausalLM, Qwen3Model
from transformers.models.qwen3.modeling_qwen3 import Qwen3DecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneQwen3Config(MixedConfig, Qwen3Config):
    """Qwen3 sizes with exceptions per block."""

    model_type = "autoprune_qwen3"


class AutopruneQwen3DecoderLayer(MixedBlock, Qwen3DecoderLayer):
    """One block with its own sizes."""


class AutopruneQwen3Model(MixedModel, Qwen3Model):
    """The stack of blocks."""

    config_class = AutopruneQwen3Config
    block = AutopruneQwen3DecoderLayer


class AutopruneQwen3ForCausalLM(MixedForCausalLM, Qwen3ForCausalLM):
    """`Qwen3ForCausalLM` over blocks of different sizes."""

    config_class = AutopruneQwen3Config
    stack = AutopruneQwen3Model
