# these classes are mixed into a family's own:
# mypy: disable-error-code="no-untyped-call, misc"
"""What a block of ViT and one of DeiT have in common: the norm before each sublayer, in modules of the same names."""

from __future__ import annotations

from typing import Any

import torch

from .modeling_autoprune_encoder import MixedEncoderBlock


class PreNormBlock(MixedEncoderBlock):
    """Mixed in before the family's own block, which must name its modules as ViT does."""

    parts = {"attention": ("layernorm_before", "attention"), "mlp": ("layernorm_after", "mlp")}
    projections = ("attention.q_proj", "attention.k_proj", "attention.v_proj")

    def attend(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, **kwargs: Any
    ) -> torch.Tensor:
        """Attention with its norm and residual."""
        attended = self.attention(self.layernorm_before(hidden_states), attention_mask, **kwargs)[0]
        return self.dropout(attended) + hidden_states  # type: ignore[no-any-return]

    def head_size(self: Any) -> int:
        """That of the model, whatever is left of the heads."""
        return self.attention.head_dim  # type: ignore[no-any-return]

    def enter(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Normed."""
        return self.layernorm_before(hidden_states)  # type: ignore[no-any-return]

    def leave(self: Any, context: torch.Tensor, hidden_states: torch.Tensor) -> torch.Tensor:
        """From the heads' outputs, with residual."""
        return self.dropout(self.attention.o_proj(context)) + hidden_states  # type: ignore[no-any-return]

    def feed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN with its norm and residual."""
        return self.dropout(self.mlp(self.layernorm_after(hidden_states))) + hidden_states  # type: ignore[no-any-return]
