"""NIRVANA: saliency for the model's output instead of its loss (card C2)."""

from __future__ import annotations

from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence


class Nirvana(Criterion):
    """|w df/dw|, f the mean over vocabulary and windows of each logit's maximum over positions."""

    needs = frozenset({"output"})
    experts = False

    def weights(self, found: Evidence) -> Tensor:
        """|w df/dw|."""
        return (found.weight.double() * found.gradient("output")).abs()
