# these classes are mixed into a family's own:
# mypy: disable-error-code="no-untyped-call, misc"
"""What a block of BERT and one of RoBERTa have in common: the norm after the residual, in modules of the same names."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .modeling_autoprune_encoder import MixedEncoderBlock


class PostNormBlock(MixedEncoderBlock):
    """Mixed in before the family's own block, which must name its modules as BERT does."""

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
