# mypy: disable-error-code="no-untyped-call, misc"
"""A BERT whose blocks differ in size: `num_attention_heads` sets the size of a head, `kept_heads` how many are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import BertConfig, BertForSequenceClassification
from transformers.models.bert.modeling_bert import BertLayer

from .modeling_autoprune_encoder import MixedEncoder, MixedEncoderBlock, MixedEncoderConfig


class AutopruneBertConfig(MixedEncoderConfig, BertConfig):
    """BERT sizes with exceptions per block."""

    model_type = "autoprune_bert"


class AutopruneBertLayer(MixedEncoderBlock, BertLayer):
    """One block with its own sizes."""

    parts = {"attention": ("attention",), "mlp": ("intermediate", "output")}
    projections = ("attention.self.query", "attention.self.key", "attention.self.value")

    def resize(self: Any, sizes: Any) -> None:
        """The stock attention has as many heads as fill the hidden size."""
        attn, hidden = self.attention.self, sizes.hidden_size
        attn.num_attention_heads = sizes.kept_heads
        attn.all_head_size = inner = sizes.kept_heads * attn.attention_head_size
        attn.query, attn.key, attn.value = (nn.Linear(hidden, inner) for _ in range(3))
        self.attention.output.dense = nn.Linear(inner, hidden)

    def attend(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Attention with its residual and norm."""
        return self.attention(hidden_states, attention_mask, **kwargs)[0]  # type: ignore[no-any-return]

    def head_size(self: Any) -> int:
        """That of the model, whatever is left of the heads."""
        return self.attention.self.attention_head_size  # type: ignore[no-any-return]

    def leave(self: Any, context: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """From the heads' outputs, with residual and norm."""
        return self.attention.output(context, hidden_states)  # type: ignore[no-any-return]

    def feed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN with its residual and norm."""
        return self.feed_forward_chunk(hidden_states)  # type: ignore[no-any-return]


class AutopruneBertForSequenceClassification(MixedEncoder, BertForSequenceClassification):
    """`BertForSequenceClassification` over blocks of different sizes."""

    config_class = AutopruneBertConfig
    block, place = AutopruneBertLayer, "bert.encoder.layer"
