"""What the policies see of a sequence."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Steps:
    """A prompt and the steps after it: token t is read when the cache holds what is left of the tokens before it.

    query [B, groups, queries a group, T, head_dim]; key [B, groups, T, head_dim]; seen [T, T]: who sees whom in the
    dense model.
    """

    query: Tensor
    key: Tensor
    prompt: int
    scale: float
    seen: Tensor

    @property
    def tokens(self) -> int:
        """T."""
        return self.key.shape[2]

    @property
    def places(self) -> Tensor:
        """0 … T - 1."""
        return torch.arange(self.tokens, device=self.key.device)

    @property
    def ago(self) -> Tensor:
        """How many tokens before a step's own each token stands, [steps, T]; negative for those to come."""
        return self.places[self.prompt :, None] - self.places

    def scores(self, first: int = 0) -> Tensor:
        """Scaled products of the queries from `first` on with all keys, [B, groups, queries a group, T - first, T]."""
        return self.query[..., first:, :] @ self.key[:, :, None].transpose(-1, -2) * self.scale

    def softmax(self, scores: Tensor, kept: Tensor) -> Tensor:
        """Probabilities from the steps' scores; kept [steps, T], or with groups before: what is still in the cache."""
        return scores.masked_fill(~(kept & self.seen[self.prompt :]), -torch.inf).softmax(-1)
