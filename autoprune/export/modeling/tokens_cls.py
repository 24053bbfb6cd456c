"""[CLS] attention: a token counts as much as the tokens that stand for the whole look at it."""

from __future__ import annotations

import torch


def score(attention: torch.Tensor, specials: int) -> torch.Tensor:
    """Mean over heads and over the first `specials` queries, [B, T]; attention [B, heads, T, T]."""
    return attention[:, :, :specials].mean((1, 2))
