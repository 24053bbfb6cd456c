# mypy: disable-error-code="no-untyped-call, misc"
"""A GPT-2 whose blocks differ in size: `n_head` sets the size of a head, `kept_heads` how many a block has left."""

from __future__ import annotations

from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.models.gpt2.modeling_gpt2 import GPT2Block
from transformers.pytorch_utils import Conv1D

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneGPT2Config(MixedConfig, GPT2Config):
    """GPT-2 sizes with exceptions per block."""

    model_type = "autoprune_gpt2"


class AutopruneGPT2Block(MixedBlock, GPT2Block):
    """One block with its own sizes."""

    parts = {"attention": ("ln_1", "attn"), "mlp": ("ln_2", "mlp")}

    def resize(self: Any, sizes: Any) -> None:
        """The stock attention has as many heads as fill the hidden size."""
        attn, inner = self.attn, sizes.kept_heads * self.attn.head_dim
        attn.num_heads, attn.split_size = sizes.kept_heads, inner
        attn.c_attn = Conv1D(3 * inner, attn.embed_dim)
        attn.c_proj = Conv1D(attn.embed_dim, inner)


class AutopruneGPT2Model(MixedModel, GPT2Model):
    """The stack of blocks."""

    config_class = AutopruneGPT2Config
    block = AutopruneGPT2Block
    output = BaseModelOutputWithPastAndCrossAttentions
    blocks, last = "h", "ln_f"

    def enter(self: Any, embedded: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Embedded tokens and their positions, [B, T, d]."""
        return self.drop(embedded + self.wpe(position_ids))  # type: ignore[no-any-return]


class AutopruneGPT2LMHeadModel(MixedForCausalLM, GPT2LMHeadModel):
    """`GPT2LMHeadModel` over blocks of different sizes."""

    config_class = AutopruneGPT2Config
    stack, place = AutopruneGPT2Model, "transformer"
