"""No importance at all: the baseline."""

from __future__ import annotations

import zlib

import torch
from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence, Site


class Random(Criterion):
    """The same order in every process, another one at every place."""

    def weights(self, found: Evidence) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(found.weight.shape, generator=_generator(found.place), dtype=torch.float64)

    def units(self, site: Site) -> Tensor:
        """Uniform in [0, 1)."""
        place = site.matrices[site.output].place
        return torch.rand(site.units.count, generator=_generator(place), dtype=torch.float64)


def _generator(place: str) -> torch.Generator:
    return torch.Generator().manual_seed(zlib.crc32(place.encode()))
