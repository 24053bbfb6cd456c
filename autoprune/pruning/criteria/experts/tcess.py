"""Task-conditioned expected selection score (PreMoe, card D2), with one choice a token and no confidence bound."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.expert_statistics import ExpertStatistics


def tcess_scores(statistics: ExpertStatistics) -> Tensor:
    """Score [experts]: mean over all tokens of an expert's router logit where it is a token's first choice, else 0."""
    return statistics.first_logit / max(1, statistics.tokens)


def tcess_order(statistics: ExpertStatistics, draw: tuple[int, int]) -> Tensor:
    """Experts, the most important first; ties keep the smaller index first."""
    return torch.argsort(tcess_scores(statistics), descending=True, stable=True)
