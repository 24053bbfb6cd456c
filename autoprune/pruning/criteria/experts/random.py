"""Any order: what the other criteria must beat."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from autoprune.pruning.expert_statistics import ExpertStatistics


def random_order(statistics: ExpertStatistics, draw: tuple[int, int]) -> Tensor:
    """Experts in an order that the seed and the block decide."""
    return torch.from_numpy(np.random.default_rng([*draw, 13]).permutation(len(statistics.count)))
