"""Clusters of router rows (STUN, card D3): of experts that answer to the same tokens one is enough."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.models.base import Weights
from autoprune.pruning.expert_statistics import ExpertStatistics


def cluster_order(statistics: ExpertStatistics, draw: tuple[int, int]) -> Tensor:
    """Experts, the most important first.

    The two clusters of nearest router rows are joined again and again, the distance of two clusters being that of
    their farthest rows (complete link). Of the two experts that stand for them the one nearer to the mean of the joined
    cluster's weights stays, the other leaves: so every count keeps one expert a cluster, and counts are nested. The
    paper takes the nearest of all the cluster's experts, which is not.
    """
    found = list(joins(statistics.weights))
    last = found[-1].stays if found else 0
    return torch.tensor([last, *(j.leaves for j in reversed(found))])


@dataclass(frozen=True)
class Join:
    """Two clusters that become one, by the experts that stand for them, and how far apart they are."""

    stays: int
    leaves: int
    distance: float


def joins(weights: Weights) -> Iterator[Join]:
    """All joins of the experts with these weights, the nearest first; distances |r_i - r_j| / |R| never fall."""
    distance = _distances(weights["router"].double())
    clusters = {expert: [expert] for expert in range(len(distance))}  # by the expert that stands for it
    while len(clusters) > 1:
        first, second = _nearest(distance, clusters)
        apart = float(distance[clusters[first]][:, clusters[second]].max())
        joined = clusters.pop(first) + clusters.pop(second)
        stays, leaves = _closer(weights, joined, (first, second))
        clusters[stays] = joined
        yield Join(stays, leaves, apart)


def _distances(rows: Tensor) -> Tensor:
    """|r_i - r_j| / |R|."""
    found: Tensor = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist") / rows.norm()
    return found


def _nearest(distance: Tensor, clusters: dict[int, list[int]]) -> tuple[int, int]:
    heads = sorted(clusters)
    pairs = [(a, b) for at, a in enumerate(heads) for b in heads[at + 1 :]]
    return min(pairs, key=lambda pair: float(distance[clusters[pair[0]]][:, clusters[pair[1]]].max()))


def _closer(weights: Weights, joined: list[int], pair: tuple[int, int]) -> tuple[int, int]:
    """The pair, the one nearer to the mean of all the cluster's weights first."""
    apart = dict.fromkeys(pair, 0.0)
    for name in ("gate", "up", "down"):
        mean = weights[name][joined].double().mean(0)
        for expert in pair:
            apart[expert] += float((weights[name][expert].double() - mean).square().sum())
    first, second = pair
    return pair if apart[first] <= apart[second] else (second, first)
