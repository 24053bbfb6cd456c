"""Optimal brain surgeon on the empirical Fisher matrix in diagonal blocks (oBERT, card C5)."""

from __future__ import annotations

from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence


class Fisher(Criterion):
    """w^2 / (2 [F^-1]_ww), F the mean outer product of the windows' gradients over neighbouring inputs, damped.

    Blocks, groups and units score the sum over their weights.
    """

    needs = frozenset({"fisher"})
    experts = False

    def weights(self, found: Evidence) -> Tensor:
        """The loss that the best update of its neighbours cannot make up for."""
        return found.weight.double() ** 2 / (2 * found.gradient("fisher").double())
