"""FLAP: what a bias could not stand in for (An et al., 2024; card B2)."""

from __future__ import annotations

from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence, Site


class Flap(Criterion):
    """Variance of the input x w^2; of a unit, over the columns of the output projection that it enters.

    The published method also adds the bias that keeps the mean output: `calibration.bias`, where the family has one;
    refit ladders solve the remaining columns anew instead.
    """

    experts = False

    def weights(self, found: Evidence) -> Tensor:
        """Var(x_j) w_ij^2."""
        inputs = found.inputs()
        variance = (inputs.second.diagonal() - inputs.mean**2).clamp(min=0.0)
        return found.weight.double() ** 2 * variance

    def units(self, site: Site) -> Tensor:
        """Of the output projection alone."""
        scores = self.weights(site.matrices[site.output])
        return scores.sum(0).reshape(site.units.count, -1).mean(1)
