"""Similarity merging: tokens are drawn into others that are like them, instead of being dropped.

Alive tokens are parted alternately in two; each of the first part has one of the second that its key is most like
(cosine, mean over heads), and the most similar pairs become one token, the mean weighted by what each holds already
(ToMe, arXiv 2210.09461). Where more must go than one round can merge, there are more rounds.
"""

from __future__ import annotations

import torch


def merge(
    hidden: torch.Tensor, keys: torch.Tensor, sizes: torch.Tensor, alive: torch.Tensor, fewer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states, sizes and who is alive after `fewer` [B] of the `alive` [B, T] tokens went into others.

    hidden [B, T, d]; keys [B, T, size]; sizes [B, T]: how many tokens each holds.
    """
    alive, fewer = alive.clone(), fewer.clone()
    while int(fewer.max()) > 0:
        chosen, target = _pairs(keys, alive, fewer)
        if not bool(chosen.any()):
            break
        held = torch.zeros_like(sizes).scatter_add_(1, target, sizes)
        hidden, keys = (_drawn(values, sizes, target, held) for values in (hidden, keys))
        sizes = held.clamp_min(1)
        alive &= ~chosen
        fewer -= chosen.sum(1)
    return hidden, sizes, alive


def _pairs(keys: torch.Tensor, alive: torch.Tensor, fewer: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Which tokens go, at most `fewer` of them, and into which each token goes (itself where it stays), both [B, T]."""
    first = (alive.long().cumsum(1) % 2 == 1) & alive
    unit = keys / keys.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    like = (unit @ unit.transpose(1, 2)).masked_fill(
        ~(first[:, :, None] & (alive & ~first)[:, None]), -torch.inf
    )
    best, target = like.max(-1)
    rank = best.argsort(dim=1, descending=True, stable=True).argsort(1)
    chosen = (rank < fewer[:, None]) & (best > -torch.inf)
    itself = torch.arange(keys.shape[1], device=keys.device).expand_as(target)
    return chosen, torch.where(chosen, target, itself)


def _drawn(
    values: torch.Tensor, sizes: torch.Tensor, target: torch.Tensor, held: torch.Tensor
) -> torch.Tensor:
    where = target[:, :, None].expand_as(values)
    masses = values * sizes[:, :, None]
    total = torch.zeros_like(masses).scatter_add_(1, where, masses)
    return total / held.clamp_min(1)[:, :, None]
