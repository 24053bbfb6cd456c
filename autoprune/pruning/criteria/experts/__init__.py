"""Criteria of experts: each ranks the experts of a block, in a file of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from autoprune.pruning.criteria.experts.activation import activation_order
from autoprune.pruning.criteria.experts.clusters import cluster_order
from autoprune.pruning.criteria.experts.frequency import frequency_order
from autoprune.pruning.criteria.experts.random import random_order
from autoprune.pruning.criteria.experts.tcess import tcess_order
from autoprune.pruning.expert_statistics import ExpertStatistics

# (statistics, (seed, block)) -> experts, the most important first
ExpertCriterion = Callable[[ExpertStatistics, tuple[int, int]], Tensor]

EXPERT_CRITERIA: Mapping[str, ExpertCriterion] = {
    "activation": activation_order,
    "frequency": frequency_order,
    "tcess": tcess_order,
    "clusters": cluster_order,
    "random": random_order,
}
