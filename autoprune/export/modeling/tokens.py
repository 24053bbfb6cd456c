"""Fewer tokens from a block on: what the engine runs while searching and what travels inside checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .tokens_attention import score as attention_score
from .tokens_cls import score as cls_score
from .tokens_merge import merge
from .tokens_pagerank import score as pagerank_score

RULES = ("attention", "cls", "merge", "pagerank")


@dataclass(frozen=True)
class Alive:
    """Tokens between two blocks: hidden states [B, T, d], and [B, T]: True where no padding, how many each holds.

    None: no padding; one each.
    """

    hidden: torch.Tensor
    valid: torch.Tensor | None = None
    sizes: torch.Tensor | None = None


def count_of(tokens: int, percent: int, specials: int) -> int:
    """How many of so many tokens are kept: the special ones, and this share of the others, rounded up."""
    free = max(0, tokens - specials)
    return tokens - free + -(-free * percent // 100)


def mask_of(alive: Alive) -> torch.Tensor | None:
    """What is added to attention scores, [B, 1, 1, T]: a token that holds several is looked at as much as they were."""
    hidden, mask = alive.hidden, None
    if alive.sizes is not None:
        mask = alive.sizes.to(hidden.dtype).log()
    if alive.valid is not None:
        mask = hidden.new_zeros(alive.valid.shape) if mask is None else mask
        mask = mask.masked_fill(~alive.valid, torch.finfo(hidden.dtype).min)
    return None if mask is None else mask[:, None, None]


def attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention's outputs [B, T, heads x size] and weights [B, heads, T, T]; query, key, value [B, heads, T, size]."""
    scores = query @ key.transpose(-1, -2) * scale
    weights = (scores if mask is None else scores + mask).softmax(-1)
    return (weights @ value).transpose(1, 2).flatten(2), weights


def reduce(
    rule: str, percent: int, alive: Alive, attention: torch.Tensor, keys: torch.Tensor, specials: int
) -> tuple[Alive, torch.Tensor]:
    """What is left of the tokens, and which of them it is, [B, T'].

    attention [B, heads, T, T]; keys [B, heads, T, size]. Of each sequence its special tokens are kept, of its others
    (padding does not count) `percent`, those that the rule ranks highest; they stay in order.
    """
    hidden, valid, sizes = alive.hidden, alive.valid, alive.sizes
    batch, tokens, _ = hidden.shape
    place = torch.arange(tokens, device=hidden.device)
    there = torch.ones(batch, tokens, dtype=torch.bool, device=hidden.device) if valid is None else valid
    have = there.sum(1).tolist()
    keep = torch.tensor([count_of(n, percent, specials) for n in have], device=hidden.device)
    if rule == "merge":
        held = hidden.new_ones(batch, tokens) if sizes is None else sizes
        free = there & (place >= specials)
        hidden, sizes, left = merge(hidden, keys.mean(1), held, free, there.sum(1) - keep)
        score = left.to(hidden.dtype)
    elif rule == "cls":
        score = cls_score(attention, specials)
    else:
        score = (pagerank_score if rule == "pagerank" else attention_score)(attention, valid)
    score = score.masked_fill(~there, -torch.inf).masked_fill(place < specials, torch.inf)
    index, known = _highest(score, keep, count_of(tokens, percent, specials))
    where = index[:, :, None].expand(-1, -1, hidden.shape[-1])
    left_over = Alive(
        hidden.gather(1, where),
        None if valid is None else known,
        None if sizes is None else sizes.gather(1, index),
    )
    return left_over, index


def _highest(score: torch.Tensor, keep: torch.Tensor, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the `count` highest scores in rising order, and whether each is among the first `keep` [B] of them."""
    order = score.argsort(dim=1, descending=True, stable=True)[:, :count]
    index, rank = order.sort(1)
    return index, rank < keep[:, None]
