"""LLM-Pruner: first and second order together, summed over coupled groups (Ma et al., 2023; card C1)."""

from __future__ import annotations

from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence


class LlmPruner(Criterion):
    """|w g - w^2 G / 2| with g the mean gradient and G the mean of the windows' squared gradients."""

    needs = frozenset({"loss", "squares"})
    experts = False

    def weights(self, found: Evidence) -> Tensor:
        """The paper's mixed element score."""
        weight = found.weight.double()
        return (weight * found.gradient("loss") - 0.5 * weight**2 * found.gradient("squares")).abs()
