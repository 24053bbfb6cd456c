"""Next-token negative log-likelihood and perplexity."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from autoprune.evaluation import Batch, Context, mean_scored


class Perplexity:
    """`nll`: mean next-token negative log-likelihood in nats within each window; `perplexity` is exp of its mean."""

    metrics = ("nll", "perplexity")
    needs: Literal["supernet"] = "supernet"

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def score(self, batch: Batch, logits: Tensor) -> Mapping[str, Tensor]:
        """Mean negative log-likelihood of each sequence, fp64 [B]; logits [B, T, V]."""
        targets = batch.ids[:, 1:, None]
        total = torch.logsumexp(logits[:, :-1], dim=-1)
        chosen = torch.gather(logits[:, :-1], -1, targets).squeeze(-1)
        return {"nll": mean_scored(total - chosen, batch)}
