"""Router-weighted activation norm (REAP, card D1): how much an expert adds where it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.expert_statistics import ExpertStatistics


def activation_scores(statistics: ExpertStatistics) -> Tensor:
    """Score [experts]: mean over the tokens routed to an expert of its share times the norm of its output.

    Shares are those of the chosen experts, summing to one. An expert without tokens has score zero.
    """
    return statistics.output / statistics.count.clamp(min=1)


def activation_order(statistics: ExpertStatistics, draw: tuple[int, int]) -> Tensor:
    """Experts, the most important first; ties keep the smaller index first."""
    return torch.argsort(activation_scores(statistics), descending=True, stable=True)
