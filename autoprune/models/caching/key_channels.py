"""Older keys keep the channels that matter to the last queries of the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.kv_policy import KeyChannels
from autoprune.models.caching.steps import Steps


def attention(policy: KeyChannels, steps: Steps) -> Tensor:
    """Probabilities of the steps; the newest keys before a step, and its own, are whole."""
    queries = steps.query[..., max(0, steps.prompt - policy.recent) : steps.prompt, :]
    keys = steps.key[:, :, : steps.prompt]
    worth = queries.square().mean((2, 3)) * keys.square().mean(2)  # [B, groups, head_dim]
    chosen = torch.zeros_like(worth).scatter_(-1, worth.topk(policy.channels, dim=-1).indices, 1.0)
    cut = (steps.query[..., steps.prompt :, :] * chosen[:, :, None, None]) @ steps.key[:, :, None].transpose(
        -1, -2
    )
    whole = steps.scores(steps.prompt)
    scores = torch.where(steps.ago <= policy.recent, whole, cut * steps.scale)
    return steps.softmax(scores, steps.ago >= 0)
