"""Optimal brain surgeon: units leave one after another, each time the one the others can best make up for."""

from __future__ import annotations

import torch
from torch import Tensor

from autoprune.pruning.criteria.activation import unit_blocks
from autoprune.pruning.criteria.base import Criterion, Evidence, Site

ROUNDS = 1024  # at most: wider sublayers lose several units a round
SETTLE = (
    128  # columns that may leave before inverse and weight are downdated: one large product instead of many
)


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
    left = Left(second, weight, units)
    gone: list[int] = []
    step = max(1, units // ROUNDS)
    while len(gone) < units - 1:
        leaving = torch.argsort(left.scores(), stable=True)[: min(step, units - 1 - len(gone))]
        gone += left.units[leaving].tolist()
        left.remove(leaving)
    last = sorted(set(range(units)) - set(gone))
    return torch.tensor([*last, *reversed(gone)], device=weight.device)


class Left:
    """The units that have not left: Hinv and W of their columns, exact at the last `settle`.

    Removing columns R takes P^T S from Hinv and W_R S from W, where P = Hinv_R and S = P_R^-1 P. These factors are
    kept apart; from round to round only what scores need is brought up to date: the units' own blocks of Hinv and of
    W^T W.
    """

    _left: Tensor  # which of the units have left since then [units]
    _rows: Tensor  # P of these [removed, d]
    _shares: Tensor  # S
    _owns: Tensor  # W_R [out, removed]

    def __init__(self, second: Tensor, weight: Tensor, units: int) -> None:
        """As `obs_order`."""
        self.inverse = torch.cholesky_inverse(torch.linalg.cholesky(second.double()))
        self.weight = weight.double().clone()
        self.units = torch.arange(units, device=weight.device)  # which these are
        self._size = len(second) // units
        self._blocks = unit_blocks(self.inverse, units).contiguous()  # [units, size, size], as the next
        own = self.weight.reshape(len(weight), units, self._size)
        self._grams = torch.einsum("ouk,oul->ukl", own, own)
        self._empty()

    def scores(self) -> Tensor:
        """What every unit's removal costs [units]; infinite for those that have left since `settle`."""
        cost: Tensor = torch.linalg.solve(self._blocks, self._grams).diagonal(dim1=1, dim2=2).sum(1)
        return cost.masked_fill_(self._left, torch.inf)

    def remove(self, leaving: Tensor) -> None:
        """Take out these units, by their places in `units`."""
        at = (leaving[:, None] * self._size + torch.arange(self._size, device=leaving.device)).flatten()
        rows = self.inverse[at] - self._rows[:, at].t() @ self._shares  # [removed, d]
        own = self.weight[:, at] - self._owns @ self._shares[:, at]  # [out, removed]
        share = torch.linalg.solve(rows[:, at], rows)
        cross = own.t() @ self.weight - (own.t() @ self._owns) @ self._shares  # [removed, d]
        self._update(rows, share, cross, own.t() @ own)
        self._rows, self._shares = torch.cat([self._rows, rows]), torch.cat([self._shares, share])
        self._owns = torch.cat([self._owns, own], 1)
        self._left[leaving] = True
        regular = torch.eye(
            self._size, dtype=own.dtype, device=own.device
        )  # what has left is solved for, too
        self._blocks[leaving] = regular
        if len(self._rows) >= SETTLE:
            self.settle()

    def settle(self) -> None:
        """Downdate Hinv and W, and drop the columns that have left."""
        self.inverse.addmm_(self._rows.t(), self._shares, alpha=-1)
        self.weight.addmm_(self._owns, self._shares, alpha=-1)
        kept = (~self._left).nonzero().flatten()
        at = (kept[:, None] * self._size + torch.arange(self._size, device=kept.device)).flatten()
        self.inverse, self.weight = self.inverse[at][:, at], self.weight[:, at]
        self.units, self._blocks, self._grams = self.units[kept], self._blocks[kept], self._grams[kept]
        self._empty()

    def _empty(self) -> None:
        self._left = torch.zeros_like(self.units, dtype=torch.bool)
        self._rows = self.inverse.new_empty(0, len(self.inverse))
        self._shares = torch.empty_like(self._rows)
        self._owns = self.weight.new_empty(len(self.weight), 0)

    def _update(self, rows: Tensor, share: Tensor, cross: Tensor, gram: Tensor) -> None:
        """Blocks of P^T S, and of W^T W where W loses W_R S; all [removed, d] but W_R^T W_R."""
        p, s, c = (x.reshape(len(x), -1, self._size) for x in (rows, share, cross))
        self._blocks -= torch.einsum("ruk,rul->ukl", p, s)
        mixed = torch.einsum("ruk,rul->ukl", c, s)
        doubled = torch.einsum("ruk,rul->ukl", (gram @ share).reshape(s.shape), s)
        self._grams += doubled - mixed - mixed.transpose(1, 2)
