"""Attention received: a token counts as much as others look at it."""

from __future__ import annotations

import torch


def score(attention: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Mean over heads and over queries that are no padding, [B, T]; attention [B, heads, T, T], valid [B, T]."""
    looks = attention.mean(1)
    if valid is None:
        return looks.mean(1)
    asks = valid.to(looks.dtype)
    return (looks * asks[:, :, None]).sum(1) / asks.sum(1, keepdim=True)
