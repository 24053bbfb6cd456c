"""The ladder of a block's experts: experts and each expert's neurons ranked, output projections refit by width."""

from __future__ import annotations

from functools import cached_property
from typing import TypeGuard

import torch
from torch import Tensor

from autoprune.errors import SettingError
from autoprune.merging import MERGE
from autoprune.models.base import Adapter, Weights
from autoprune.models.experts import ExpertDecoder
from autoprune.pruning.calibration import Stream
from autoprune.pruning.criteria.experts import EXPERT_CRITERIA
from autoprune.pruning.expert_statistics import gather
from autoprune.pruning.ladders import LadderFile
from autoprune.pruning.ranking import neuron_order
from autoprune.pruning.recipe import EXPERT_CRITERION, LadderRecipe
from autoprune.space import Kind, Plan, SublayerPlan


def routed(adapter: Adapter, kind: Kind) -> TypeGuard[ExpertDecoder]:
    """Whether the sublayers of this kind are experts behind a router."""
    return kind == "ffn" and adapter.shape.experts > 0


class ExpertSite:
    """One block's experts with their statistics.

    Every expert is refit on the tokens that are routed to it, towards what it gives dense on the same inputs; where a
    recipe follows the dense model, experts do not.
    """

    def __init__(self, adapter: ExpertDecoder, block: int, stream: Stream, recipe: LadderRecipe) -> None:
        self._adapter, self._block, self._recipe = adapter, block, recipe
        self.dense, self._width = adapter.weights(block, "ffn"), adapter.shape.ffn
        self._narrows = recipe.partial(block, "ffn", "width", self._width)
        statistics = gather(adapter, block, stream.reference, self._narrows)
        rank = EXPERT_CRITERIA[recipe.expert_criterion or EXPERT_CRITERION]
        self.order = rank(statistics, (recipe.seed, block)).to(self.dense["down"].device)
        self._second = None
        if statistics.second is not None:
            self._second = _damped(statistics.second, statistics.count, recipe.damping)

    @cached_property
    def neurons(self) -> Tensor:
        """Each expert's neurons, the most important first, [experts, width]; experts in their order."""
        if self._second is None:
            return torch.arange(self._width, device=self.order.device).repeat(len(self.order), 1)
        place, down, second = f"block{self._block}.ffn.down", self.dense["down"], self._second
        ranked = [
            neuron_order(self._recipe.criterion, second[e], down[e], f"{place}.{e}")
            for e in self.order.tolist()
        ]
        return torch.stack(ranked)

    @cached_property
    def taken(self) -> Weights:
        """All weights, experts and neurons in their order."""
        units = self._adapter.all_units("ffn")
        found = units["experts"].take(self.dense, self.order)
        for name, (dim, _) in units["width"].slices.items():
            index = self.neurons[:, :, None] if dim == 1 else self.neurons[:, None, :]
            found[name] = found[name].gather(dim, index.expand_as(found[name]))
        return found

    def write(self, file: LadderFile, refit: bool) -> None:
        """Into a ladder file, with every width's own output projections where they are `refit`."""
        units = self._adapter.units("ffn")
        file.experts(self._block, units, self.taken, self.order, self.neurons)
        if refit and self._narrows and self._recipe.options is not None:
            for count in self._recipe.counts(self._block, "ffn", "width"):
                if 0 < count < self._width:
                    file.option(self._block, "ffn", count, self.output(count))

    def output(self, count: int) -> Tensor:
        """The refit output projections [experts, out, count] of each expert's first `count` neurons."""
        factor, wanted = self._normal
        solved = torch.cholesky_solve(wanted[:, :count], factor[:, :count, :count])
        return solved.mT.to(self.dense["down"].dtype)

    def weights(self, plan: SublayerPlan) -> Weights:
        """Those of a plan's sublayer, refit; SettingError where experts are merged: their order may be another."""
        if MERGE in dict(plan.settings):
            raise SettingError("a plan with merged experts cannot be refit: leave export.refit=false")
        units, count = self._adapter.all_units("ffn"), int(plan.get("width"))
        found = units["width"].prefix(self.taken, count)
        if count < self._width:
            found["down"] = self.output(count).mT.contiguous().mT
        return units["experts"].prefix(found, int(plan.get("experts", len(self.order))))

    def reference(self, plan: Plan | None) -> Weights | None:
        """What the reference runs here: the dense weights, or the plan's option; None where that is gone."""
        if plan is None:
            return self.dense
        sublayer = plan.at(self._block, "ffn")
        return None if sublayer.gone else self.weights(sublayer)

    @cached_property
    def _normal(self) -> tuple[Tensor, Tensor]:
        """Cholesky factors [experts, width, width] and right sides [experts, width, out] of the normal equations.

        As for any site (see `refit`), with damping that pulls towards the dense projection.
        """
        assert self._second is not None, "widths are refit only where they are options"
        at = self.neurons
        rows = self._second[self.order].gather(1, at[:, :, None].expand(-1, -1, self._width))
        second = rows.gather(2, at[:, None, :].expand_as(rows))
        return torch.linalg.cholesky(second), second @ self.taken["down"].double().mT


def _damped(second: Tensor, count: Tensor, damping: float) -> Tensor:
    """Each expert's moments with a share of their mean diagonal added; of an expert without tokens the identity.

    The share is `damping`, and one more per token and neuron: rare experts see too few tokens to be solved from.
    """
    mean, width = second.diagonal(dim1=1, dim2=2).mean(-1), second.shape[-1]
    added = torch.where(mean > 0, (damping + width / count) * mean, torch.ones_like(mean))
    return second + added[:, None, None] * torch.eye(width, dtype=second.dtype, device=second.device)
