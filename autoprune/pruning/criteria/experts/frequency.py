"""How often an expert is used."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.expert_statistics import ExpertStatistics


def frequency_order(statistics: ExpertStatistics, draw: tuple[int, int]) -> Tensor:
    """Experts by the number of tokens routed to them, the most first; ties keep the smaller index first."""
    return torch.argsort(statistics.count, descending=True, stable=True)
