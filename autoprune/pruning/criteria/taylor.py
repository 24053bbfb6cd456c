"""First-order Taylor: by how much the loss would change."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.criteria.base import Criterion, Evidence, Site


class Taylor(Criterion):
    """|w dL/dw|, the first-order change of the mean loss when w is set to zero; of a unit |sum of w dL/dw|."""

    needs = frozenset({"loss"})
    experts = False

    def weights(self, found: Evidence) -> Tensor:
        """|w dL/dw|."""
        return (found.weight.double() * found.gradient("loss")).abs()

    def units(self, site: Site) -> Tensor:
        """Of all its weights at once: changes of unlike sign cancel."""
        total = torch.zeros(site.units.count, dtype=torch.float64, device=site.best.device)
        for name, found in site.matrices.items():
            if name in site.units.slices:
                change = (found.weight.double() * found.gradient("loss")).sum(1 - site.units.slices[name][0])
                total += change.reshape(site.units.count, -1).sum(1)
        return total.abs()
