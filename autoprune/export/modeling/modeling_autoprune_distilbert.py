# mypy: disable-error-code="no-untyped-call, misc"
"""A DistilBERT whose blocks differ in size: `n_heads` sets the size of a head, `kept_heads` how many are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DistilBertConfig, DistilBertForSequenceClassification
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderBlock, MixedEncoderConfig


class AutopruneDistilBertConfig(MixedEncoderConfig, DistilBertConfig):
    """DistilBERT sizes with exceptions per block."""

    model_type = "autoprune_distilbert"


class AutopruneTransformerBlock(MixedEncoderBlock, TransformerBlock):
    """One block with its own sizes."""

    parts = {"attention": ("attention", "sa_layer_norm"), "mlp": ("ffn", "output_layer_norm")}
    projections = ("attention.q_lin", "attention.k_lin", "attention.v_lin")

    def resize(self: Any, sizes: Any) -> None:
        """The stock attention has as many heads as fill the hidden size."""
        attn, inner = self.attention, sizes.kept_heads * self.attention.attention_head_size
        attn.n_heads = sizes.kept_heads
        attn.q_lin, attn.k_lin, attn.v_lin = (nn.Linear(attn.dim, inner) for _ in range(3))
        attn.out_lin = nn.Linear(inner, attn.dim)

    def attend(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Attention with its residual and norm."""
        attended = self.attention(hidden_states, attention_mask=attention_mask, **kwargs)[0]
        return self.sa_layer_norm(attended + hidden_states)  # type: ignore[no-any-return]

    def head_size(self: Any) -> int:
        """That of the model, whatever is left of the heads."""
        return self.attention.attention_head_size  # type: ignore[no-any-return]

    def leave(self: Any, context: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """From the heads' outputs, with residual and norm."""
        return self.sa_layer_norm(self.attention.out_lin(context) + hidden_states)  # type: ignore[no-any-return]

    def feed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN with its residual and norm."""
        return self.output_layer_norm(self.ffn(hidden_states) + hidden_states)  # type: ignore[no-any-return]


class AutopruneDistilBertForSequenceClassification(MixedEncoder, DistilBertForSequenceClassification):
    """`DistilBertForSequenceClassification` over blocks of different sizes."""

    config_class = AutopruneDistilBertConfig
    block, place = AutopruneTransformerBlock, "distilbert.transformer.layer"
