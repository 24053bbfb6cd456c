"""No importance at all: the baseline."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence, Site


class Random(Criterion):
    """The same order in every process, another one at every place."""

    def weights(self, found: Evidence) -> Tensor:
        """Uniform in [0, 1)."""
        return _drawn(found.weight.shape, found)

    def units(self, site: Site) -> Tensor:
        """Uniform in [0, 1)."""
        return _drawn((site.units.count,), site.matrices[site.output])


def _drawn(shape: Sequence[int], found: Evidence) -> Tensor:
    """On the CPU, so that the order is the same on every device."""
    generator = torch.Generator().manual_seed(zlib.crc32(found.place.encode()))
    return torch.rand(tuple(shape), generator=generator, dtype=torch.float64).to(found.weight.device)
