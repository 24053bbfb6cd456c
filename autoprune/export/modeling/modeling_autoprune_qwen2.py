# mypy: disable-error-code="no-untyped-call, misc"
"""A Qwen2 whose blocks differ in size."""

from __future__ import annotations

from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Model
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneQwen2Config(MixedConfig, Qwen2Config):
    """Qwen2 sizes with exceptions per block."""

    model_type = "autoprune_qwen2"


class AutopruneQwen2DecoderLayer(MixedBlock, Qwen2DecoderLayer):
    """One block with its own sizes."""


class AutopruneQwen2Model(MixedModel, Qwen2Model):
    """The stack of blocks."""

    config_class = AutopruneQwen2Config
    block = AutopruneQwen2DecoderLayer


class AutopruneQwen2ForCausalLM(MixedForCausalLM, Qwen2ForCausalLM):
    """`Qwen2ForCausalLM` over blocks of different sizes."""

    config_class = AutopruneQwen2Config
    stack = AutopruneQwen2Model
