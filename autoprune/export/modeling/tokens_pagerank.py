"""Weighted PageRank: a token counts as much as tokens that count look at it.

The signal of each head is passed on along its attention, s <- A^T s, from a uniform start and without damping; heads
are combined by their root mean square, which stresses what one head finds important (Zero-TPrune, arXiv 2305.17328,
its first stage; AIM, arXiv 2412.03248, in its language model). No head is left out; the number of steps is fixed, so
that a score does not depend on what else is in the batch.
"""

from __future__ import annotations

import torch

STEPS = 5


def score(attention: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """Importance of tokens, [B, T]; attention [B, heads, T, T], its rows sum to one over valid tokens."""
    batch, heads, tokens, _ = attention.shape
    start = attention.new_ones(batch, tokens) if valid is None else valid.to(attention.dtype)
    signal = (start / start.sum(-1, keepdim=True))[:, None, None].expand(batch, heads, 1, tokens)
    for _ in range(STEPS):
        signal = signal @ attention
    return signal[:, :, 0].square().mean(1).sqrt()
