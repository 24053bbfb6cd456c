"""The newest tokens stay, and those that had most attention."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.kv_policy import Accumulated
from autoprune.models.caching.steps import Steps


def attention(policy: Accumulated, steps: Steps) -> Tensor:
    """Probabilities of the steps: who leaves the cache depends on all steps before, so they are taken one by one."""
    scores = steps.scores()
    paid = scores.new_zeros(*steps.key.shape[:2], steps.tokens)  # [B, groups, T] forgotten step by step
    kept = torch.zeros_like(paid, dtype=torch.bool)
    _read_prompt(policy, steps, scores, paid, kept)
    found = torch.zeros_like(scores[..., steps.prompt :, :])
    count = min(steps.prompt, policy.budget)
    for at in range(steps.prompt, steps.tokens):
        kept[..., at] = True
        row, seen = scores[..., at, : at + 1], steps.seen[at, : at + 1]
        share = row.masked_fill(~(kept[..., None, : at + 1] & seen), -torch.inf).softmax(-1)
        found[..., at - steps.prompt, : at + 1] = share
        paid[..., : at + 1].mul_(policy.forgetting).add_(share.sum(2))
        count += 1
        if count > policy.budget:
            old = at + 1 - policy.recent
            worth = paid[..., :old].masked_fill(~_alive(steps, at)[:old], -1.0)
            leaves = worth.masked_fill_(~kept[..., :old], torch.inf).argmin(-1, keepdim=True)
            kept.scatter_(-1, leaves, False)
            count -= 1
    return found


def _read_prompt(policy: Accumulated, steps: Steps, scores: Tensor, paid: Tensor, kept: Tensor) -> None:
    """What the prompt's own queries paid, and what is left of the prompt; written into `paid` and `kept`."""
    prompt = steps.prompt
    share = scores[..., :prompt, :prompt].masked_fill(~steps.seen[:prompt, :prompt], -torch.inf).softmax(-1)
    age = torch.arange(prompt - 1, -1, -1, device=paid.device, dtype=paid.dtype)
    paid[..., :prompt] = (share.sum(2) * (policy.forgetting**age)[:, None]).sum(-2)
    kept[..., :prompt] = True
    if prompt > policy.budget:
        old = prompt - policy.recent
        worth = paid[..., :old].masked_fill(~_alive(steps, prompt - 1)[:old], -1.0)
        kept[..., :old] = False
        kept.scatter_(-1, worth.topk(policy.budget - policy.recent, dim=-1).indices, True)


def _alive(steps: Steps, at: int) -> Tensor:
    """Whom the step after token `at` could still see in the dense model, [T]."""
    return steps.seen[min(at + 1, steps.tokens - 1)]
