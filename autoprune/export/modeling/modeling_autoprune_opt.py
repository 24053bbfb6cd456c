# mypy: disable-error-code="no-untyped-call, misc"
"""An OPT whose blocks differ in size: `num_attention_heads` sets the size of a head, `kept_heads` how many are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache, OPTConfig, OPTForCausalLM
from transformers.models.opt.modeling_opt import OPTDecoder, OPTDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneOPTConfig(MixedConfig, OPTConfig):
    """OPT sizes with exceptions per block."""

    model_type = "autoprune_opt"


class AutopruneOPTDecoderLayer(MixedBlock, OPTDecoderLayer):
    """One block with its own sizes."""

    parts = {"attention": ("self_attn_layer_norm", "self_attn"), "mlp": ("final_layer_norm", "fc1", "fc2")}

    def resize(self: Any, sizes: Any) -> None:
        """The stock attention has as many heads as fill the hidden size."""
        attn, inner = self.self_attn, sizes.kept_heads * self.self_attn.head_dim
        attn.num_heads = sizes.kept_heads
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attn, name, nn.Linear(attn.embed_dim, inner, bias=attn.enable_bias))
        attn.out_proj = nn.Linear(inner, attn.embed_dim, bias=attn.enable_bias)

    def feed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN's output [B, T, d]."""
        inner = self.activation_fn(self.fc1(self.final_layer_norm(hidden_states)))
        return self.fc2(inner)  # type: ignore[no-any-return]

    def dropped(self: Any, sublayer: str, out: torch.Tensor) -> torch.Tensor:
        """Dropout before the residual is added."""
        return nn.functional.dropout(out, p=self.dropout, training=self.training)


class AutopruneOPTDecoder(MixedModel, OPTDecoder):
    """The stack of blocks; `layerdrop` is not applied."""

    config_class = AutopruneOPTConfig
    block = AutopruneOPTDecoderLayer
    last = "final_layer_norm"

    def enter(self: Any, embedded: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """Embedded tokens and their positions, [B, T, d]."""
        return embedded + self.embed_positions(None, position_ids=position_ids)  # type: ignore[no-any-return]

    def positions(
        self: Any, embedded: torch.Tensor, attention_mask: torch.Tensor | None, past: Cache | None
    ) -> torch.Tensor:
        """Positions count real tokens: padding has -1."""
        if attention_mask is None or attention_mask.ndim != 2:
            counted: torch.Tensor = super().positions(embedded, attention_mask, past)
            return counted
        counted = torch.cumsum(attention_mask, dim=1) * attention_mask - 1
        return counted[:, -embedded.shape[1] :].long()


class AutopruneOPTForCausalLM(MixedForCausalLM, OPTForCausalLM):
    """`OPTForCausalLM` over blocks of different sizes."""

    config_class = AutopruneOPTConfig
    stack, place = AutopruneOPTDecoder, "model.decoder"
