"""Greedy decoding of a built model with its KV cache, as it would be served."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor


class NotFiniteError(Exception):
    """A model's logits are not finite."""


@torch.inference_mode()
def greedy(model: Any, ids: Tensor, count: int, ends: Collection[int] = ()) -> Tensor:
    """The likeliest next tokens one by one, [B, at most count]; prompts [B, T] are equally long.

    Ends early when every sequence has had one of `ends`; what follows one means nothing.
    """
    given, cache, found = ids.to(model.device), None, list[Tensor]()
    ended = torch.zeros(len(ids), dtype=torch.bool, device=given.device)
    stops = torch.tensor(sorted(ends), dtype=given.dtype, device=given.device)
    while len(found) < count and not bool(ended.all()):
        output = model(input_ids=given, past_key_values=cache, use_cache=True)
        last = output.logits[:, -1]
        if not bool(torch.isfinite(last).all()):
            raise NotFiniteError(f"logits are not finite at generated token {len(found)}")
        given, cache = last.argmax(-1, keepdim=True), output.past_key_values
        found.append(given)
        ended |= torch.isin(given[:, 0], stops)
    return torch.cat(found, 1).cpu()
