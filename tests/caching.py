"""Plans whose KV caches throw tokens away, and the masked stream that scores them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from autoprune.shape import Shape
from autoprune.space import KINDS, Plan, SublayerPlan

PROMPT, TOKENS = 10, 24
POLICIES: dict[str, dict[str, int | float]] = {
    "window": {"kv_budget": 7, "kv_sink": 2, "kv_full": 24},
    "accumulated": {"kv_budget": 7, "kv_recent": 3, "kv_forgetting": 0.9, "kv_full": 24},
    "streaming": {"kv_full_groups": 1, "kv_sink": 2, "kv_recent": 4, "kv_full": 2},
    "key_channels": {"kv_channels": 3, "kv_recent": 3, "kv_full": 8},
}


def cut_plan(shape: Shape, *blocks: dict[str, int | float], groups: int | None = None) -> Plan:
    """Every block with its own settings of the cache, the last for those that are left."""
    found = []
    for block in range(shape.blocks):
        settings = blocks[min(block, len(blocks) - 1)]
        kept = shape.kv_groups if groups is None else groups
        found += [SublayerPlan.of("attention", kv_groups=kept, **settings)]
        found += [SublayerPlan.of("ffn", width=shape.ffn)]
    return Plan(tuple(found))


@torch.inference_mode()
def masked(adapter: Any, plan: Plan, ids: Tensor, prompt: int | None = PROMPT) -> Tensor:
    """Logits [B, T, V] of the block stream; the adapter's own prompt is left as it was."""
    before, adapter.prompt_len = adapter.prompt_len, prompt
    try:
        state = adapter.embed(ids)
    finally:
        adapter.prompt_len = before
    for block in range(plan.blocks):
        for kind in KINDS:
            sublayer = plan.at(block, kind)
            state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind), sublayer)
    return adapter.head(state)  # type: ignore[no-any-return]


@torch.inference_mode()
def decoded(model: Any, ids: Tensor, prompt: int = PROMPT) -> Tensor:
    """Logits [B, T, V] of a built model that reads a prompt and then every token by itself, with its own cache."""
    out = model(ids[:, :prompt], use_cache=True)
    found = [out.logits]
    for at in range(prompt, ids.shape[1]):
        out = model(ids[:, at : at + 1], past_key_values=out.past_key_values, use_cache=True)
        found.append(out.logits)
    return torch.cat(found, 1)
