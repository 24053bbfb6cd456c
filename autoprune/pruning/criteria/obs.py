"""Optimal brain surgeon: units leave one after another, each time the one the others can best make up for."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.criteria.activation import unit_blocks
from autoprune.pruning.criteria.base import Criterion, Evidence, Site

ROUNDS = 1024  # at most: wider sublayers lose several units a round


class Obs(Criterion):
    """Of a weight w^2 / [H^-1]_jj: the error of its output once the others make up for it."""

    by_row = True

    def weights(self, found: Evidence) -> Tensor:
        """As if it were the only one to leave."""
        return found.weight.double() ** 2 / (found.upper() ** 2).sum(0)

    def order(self, site: Site) -> Tensor:
        """See `obs_order`."""
        return obs_order(site.second, site.best, site.units.count)


def obs_order(second: Tensor, weight: Tensor, units: int) -> Tensor:
    """Units [units], the last to leave first; second [d, d] positive definite, weight [out, d], d = units x size.

    Score of unit u = tr(W_u (Hinv_uu)^-1 W_u^T), the least squared error its removal costs once the others are
    re-solved; then W and Hinv are downdated as if it was never there (ZipLM, card A5; Tyr, card A1). With `weight` the
    least-squares solution of any target, the score is exact for that target.
    """
    inverse = torch.linalg.inv(second.double())
    weight = weight.double().clone()
    alive = torch.ones(units, dtype=torch.bool, device=weight.device)
    gone: list[int] = []
    step = max(1, units // ROUNDS)
    while len(gone) < units - 1:
        score = _scores(inverse, weight, units).masked_fill_(~alive, torch.inf)
        leaving = torch.argsort(score, stable=True)[: min(step, units - 1 - len(gone))]
        _remove(inverse, weight, leaving, len(inverse) // units)
        alive[leaving] = False
        gone += leaving.tolist()
    return torch.tensor([*alive.nonzero().flatten().tolist(), *reversed(gone)], device=weight.device)


def _scores(inverse: Tensor, weight: Tensor, units: int) -> Tensor:
    own = weight.reshape(weight.shape[0], units, -1).permute(1, 2, 0)  # [units, size, out]
    error: Tensor = own * torch.linalg.solve(unit_blocks(inverse, units), own)
    return error.sum((1, 2))


def _remove(inverse: Tensor, weight: Tensor, leaving: Tensor, size: int) -> None:
    """Downdate both in place; what left keeps an identity block, so that later solves stay regular."""
    at = (leaving[:, None] * size + torch.arange(size, device=leaving.device)).flatten()
    share = torch.linalg.solve(inverse[at][:, at], inverse[at])  # [removed, d]
    weight -= weight[:, at] @ share
    inverse -= inverse[:, at] @ share
    weight[:, at] = 0.0
    inverse[at], inverse[:, at] = 0.0, 0.0
    inverse[at, at] = 1.0
