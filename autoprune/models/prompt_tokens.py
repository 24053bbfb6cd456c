"""Prompt tokens that blocks drop, for good or until later steps bring them back (LazyLLM), teacher-forced.

Prompt and continuation run at once. A step is the reading of the prompt (step 0) or one later token. `alive`
[B, 1 + later tokens, prompt] says which prompt tokens a step has in sight. A token goes through a block at the first
step that has it there, and never again, so its keys, values and hidden state are the same for all later steps: one pass
with one mask computes them all. Tokens that no step has are computed and never looked at.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sight(alive: Tensor, causal: Tensor) -> Tensor:
    """Who sees whom, [B, 1, T, T]; causal [T, T]: in the dense model."""
    prompt = alive.shape[2]
    first = alive.long().argmax(1)  # the step at which a token runs
    read = alive.gather(1, first[..., None].expand(-1, -1, prompt))
    rows = torch.cat((read, alive[:, 1:]), 1)
    later = torch.ones(*rows.shape[:2], len(causal) - prompt, dtype=torch.bool, device=rows.device)
    itself = torch.eye(len(causal), dtype=torch.bool, device=rows.device)
    return ((torch.cat((rows, later), 2) | itself) & causal)[:, None]


def everyone(batch: int, prompt: int, tokens: int, device: torch.device) -> Tensor:
    """What the steps have in sight where nothing was dropped yet."""
    return torch.ones(batch, 1 + tokens - prompt, prompt, dtype=torch.bool, device=device)


def handed_on(
    alive: Tensor, query: Tensor, key: Tensor, seen: Tensor, scale: float, percent: int, *, for_good: bool
) -> Tensor:
    """What is left in sight of every step: what its own token looks at most (mean over heads), and the prompt's last.

    query [B, heads, T, head_dim], key [B, groups, T, head_dim]; seen [B, 1, T, T]. The share is of the tokens in sight,
    rounded up. `for_good`: the prompt's last token chooses for all steps.
    """
    prompt, steps = alive.shape[2], alive.shape[1]
    alive = alive[:, :1] if for_good else alive
    asking = slice(prompt - 1, prompt - 1 + alive.shape[1])
    asked = query[:, :, asking].unflatten(1, (key.shape[1], -1))
    scores = asked @ key[:, :, None].transpose(-1, -2) * scale
    looks = scores.masked_fill(~seen[:, :, None, asking], -torch.inf).softmax(-1)[..., :prompt]
    worth = looks.float().mean((1, 2)).masked_fill(~alive, -torch.inf)
    worth[..., -1] = torch.inf
    count = -(-int(alive[0, 0].sum()) * percent // 100)
    best = worth.argsort(dim=-1, descending=True, stable=True)[..., :count]
    return torch.zeros_like(alive).scatter(-1, best, True).expand(-1, steps, -1)
