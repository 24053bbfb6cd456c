"""Attention as a decoder computes it whose KV cache is cut: the tokens after a prompt, each at its own step.

One file a policy. Each gives the attention probabilities of the steps from queries and keys of the whole sequence, so
that prompt and continuation go through a block at once and prefixes stay shared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.kv_policy import Accumulated, KeyChannels, KVPolicy, Streaming, Window
from autoprune.models.caching import accumulated, key_channels, streaming, window
from autoprune.models.caching.steps import Steps

Attention = Callable[[Any, Steps], Tensor]
"""Attention probabilities [B, groups, queries a group, steps, T] under a policy."""

ATTENTION: Mapping[type[KVPolicy], Attention] = {
    Window: window.attention,
    Accumulated: accumulated.attention,
    Streaming: streaming.attention,
    KeyChannels: key_channels.attention,
}


def attend(
    policy: KVPolicy,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prompt: int,
    scale: float,
    mask: Tensor | None = None,
) -> Tensor:
    """Attention's output [B, heads, T, head_dim]: dense in the first `prompt` tokens, from the cut cache after them.

    query [B, heads, T, head_dim], key and value [B, groups, T, head_dim]; mask [T, T]: who sees whom in the dense
    model, None for all before.
    """
    first = None if mask is None else mask[:prompt, :prompt]
    read = functional.scaled_dot_product_attention(
        query[:, :, :prompt],
        key[:, :, :prompt],
        value[:, :, :prompt],
        attn_mask=first,
        is_causal=first is None,
        scale=scale,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    tokens = query.shape[2]
    seen = torch.ones(tokens, tokens, dtype=torch.bool, device=query.device).tril() if mask is None else mask
    grouped = query.view(query.shape[0], key.shape[1], -1, *query.shape[2:])
    steps = Steps(grouped, key, prompt, scale, seen)
    decoded = ATTENTION[type(policy)](policy, steps) @ value[:, :, None]
    return torch.cat((read, decoded.flatten(1, 2)), dim=2)
