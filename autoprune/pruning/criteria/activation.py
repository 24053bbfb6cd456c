"""Activation-aware importance: the energy a unit contributes to its sublayer's output."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence, Site


class Activation(Criterion):
    """Of a weight w^2 x mean of x^2, compared within its output (Wanda's |w| x |x|, squared; card C7)."""

    by_row = True

    def weights(self, found: Evidence) -> Tensor:
        """Wanda's score, squared so that blocks add up energies."""
        return found.weight.double() ** 2 * found.inputs().second.diagonal()

    def units(self, site: Site) -> Tensor:
        """See `activation_scores`."""
        return activation_scores(site.second, site.best, site.units.count)


def activation_scores(second: Tensor, weight: Tensor, units: int) -> Tensor:
    """Score [units] of unit u = sum over tokens of |W_u x_u|^2; second [d, d], weight [out, d], d = units x size.

    For single columns this is |W_u|^2 * sum x_u^2 (the squared form of Wanda's |W| * |X|); for KV groups the slices are
    several columns wide and their correlations count.
    """
    size = weight.shape[1] // units
    columns = weight.double().reshape(weight.shape[0], units, size)
    gram = torch.einsum("dua,dub->uab", columns, columns)
    return (gram * unit_blocks(second, units)).sum((1, 2))


def activation_order(second: Tensor, weight: Tensor, units: int) -> Tensor:
    """Units [units], the most important first; ties keep the smaller index first."""
    return torch.argsort(activation_scores(second, weight, units), descending=True, stable=True)


def unit_blocks(matrix: Tensor, units: int) -> Tensor:
    """Each unit's own block on the diagonal: [d, d] to [units, size, size]."""
    size = len(matrix) // units
    return matrix.reshape(units, size, units, size).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
