"""The contract of criteria: what they may look at, and the two questions they answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from autoprune.models.base import Units


@dataclass(frozen=True)
class Inputs:
    """Of what enters a matrix: `second` = mean over tokens of x x^T [in, in], `mean` [in]; fp64."""

    second: Tensor
    mean: Tensor

    def at(self, columns: Tensor) -> Inputs:
        """Of some inputs only."""
        return Inputs(self.second[columns][:, columns], self.mean[columns])


@dataclass(frozen=True)
class Evidence:
    """A matrix [out, in] with what a criterion may look at; all but the weight is made when asked for.

    `place`: as in `block3.ffn.up`. `upper`: U with U^T U the inverse of the damped second moments of its inputs.
    `gradient`: one of `criteria.gradients.KINDS` to figures [out, in].
    """

    weight: Tensor
    place: str
    inputs: Callable[[], Inputs]
    upper: Callable[[], Tensor]
    gradient: Callable[[str], Tensor]


@dataclass(frozen=True)
class Site:
    """A sublayer whose units are to be ranked: its matrices, and the one that its units' outputs enter.

    `second` [d, d]: damped second moments of what enters the `output` projection; `best` [out, d]: that projection, or
    what it should be.
    """

    matrices: Mapping[str, Evidence]
    units: Units
    output: str
    second: Tensor
    best: Tensor


class Criterion(ABC):
    """Scores single weights, and ranks units: by the summed scores of all weights that go with a unit, unless it says.

    `needs`: the gradients it asks for. `by_row`: single weights are compared within their output. `experts`: whether
    it ranks the neurons of experts, of whom nothing but second moments is gathered.
    """

    needs: ClassVar[frozenset[str]] = frozenset()
    experts: ClassVar[bool] = True
    by_row: ClassVar[bool] = False

    @abstractmethod
    def weights(self, found: Evidence) -> Tensor:
        """Scores [out, in] of single weights, never negative; those of blocks are their sums."""

    def units(self, site: Site) -> Tensor:
        """Scores [units], comparable within the site."""
        total = torch.zeros(site.units.count, dtype=torch.float64, device=site.best.device)
        for name, found in site.matrices.items():
            if name in site.units.slices:
                dim, _ = site.units.slices[name]
                each = self.weights(found).double().sum(1 - dim)
                total += each.reshape(site.units.count, -1).sum(1)
        return total

    def order(self, site: Site) -> Tensor:
        """Units, the most important first; of equal ones the smaller index."""
        return torch.argsort(self.units(site), descending=True, stable=True)
