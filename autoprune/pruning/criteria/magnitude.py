"""Size alone."""

from __future__ import annotations

from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence


class Magnitude(Criterion):
    """w^2, compared in the whole matrix; of a unit the squared norm of all its weights."""

    def weights(self, found: Evidence) -> Tensor:
        """w^2."""
        return found.weight.double() ** 2
