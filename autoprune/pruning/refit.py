"""Refit ladders: at every option the surviving columns of the output projection are solved anew, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from autoprune.models.base import Adapter, Weights
from autoprune.pruning.calibration import Progress, Stream
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.ladders import OUTPUT, LadderFile, columns
from autoprune.pruning.moments import Moments, regular
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, Kind, Plan, SublayerPlan


def build_refit(
    adapter: Adapter, recipe: LadderRecipe, folder: Path, progress: Progress | None = None
) -> None:
    """Rank, refit every option, and write the ladder file into `folder`.

    The full option stays the dense weights, unless the recipe follows the dense model.
    """
    file, total = LadderFile(), adapter.shape.blocks * len(KINDS)
    with torch.inference_mode(), regular(recipe.damping):
        stream = Stream(adapter, recipe.windows, recipe.sequences)
        for block in range(adapter.shape.blocks):
            for position, kind in enumerate(KINDS, 1):
                site = _Site(adapter, block, kind, stream.moments(block, kind, recipe.follow), recipe)
                file.site(block, kind, site.units, site.dense, site.order)
                for count in recipe.counts(block, kind, adapter.unit_setting(kind)):
                    if 0 < count < site.units.count + recipe.follow:
                        file.option(block, kind, count, site.output(count))
                stream.advance(block, kind, site.reference(recipe.reference), site.dense)
                if progress is not None:
                    progress(block * len(KINDS) + position, total)
    file.save(folder)


def refit_plan(adapter: Adapter, plan: Plan, recipe: LadderRecipe) -> FixedWeights:
    """The weights of one plan, refit once more in its own company: sublayer after sublayer brings the hidden states of
    the compressed model back towards the dense model's. Sublayers that keep everything are refit, too."""
    found: dict[tuple[int, Kind], Weights] = {}
    with torch.inference_mode(), regular(recipe.damping):
        stream = Stream(adapter, recipe.windows, recipe.sequences)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                sublayer = plan.at(block, kind)
                if sublayer.gone:
                    stream.advance(block, kind, None, adapter.weights(block, kind))
                    continue
                site = _Site(adapter, block, kind, stream.moments(block, kind, follow=True), recipe)
                count = int(sublayer.get(adapter.unit_setting(kind)))
                found[block, kind] = site.weights(count)
                stream.advance(block, kind, found[block, kind], site.dense)
    return FixedWeights(found)


class FixedWeights:
    """The weights of one plan's sublayers, as a ladder that has no other option."""

    def __init__(self, weights: Mapping[tuple[int, Kind], Weights]) -> None:
        self._weights = weights

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that is not gone."""
        return self._weights[block, plan.kind]


class _Site:
    """One sublayer with its moments: its order and its refit options.

    W_K = wanted_K^T (H_KK)^-1 is the least-squares output projection over the kept columns K only, with damping that
    pulls it towards the dense one (card A1, its last step; card A5). Kept columns are prefixes of one order, so one
    Cholesky factor holds the factors of all options.
    """

    def __init__(
        self, adapter: Adapter, block: int, kind: Kind, moments: Moments, recipe: LadderRecipe
    ) -> None:
        self.units, self.dense = adapter.units(kind), adapter.weights(block, kind)
        self._follow = recipe.follow
        self._setting, self._block, self._kind = adapter.unit_setting(kind), block, kind
        self._projection = self.dense[OUTPUT[kind]]
        self._size = self._projection.shape[1] // self.units.count
        second, added = moments.damped(recipe.damping)
        wanted = moments.cross + added * self._projection.double().t()
        best = torch.linalg.solve(second, wanted).t()  # what all columns together would be: ranked against it
        self.order = CRITERIA[recipe.criterion](second, best, self.units.count)
        at = columns(self.order, self.units.count, self._size)
        self._wanted, self._factor = wanted[at], torch.linalg.cholesky(second[at][:, at])

    def output(self, count: int) -> Tensor:
        """The refit output projection [out, count x size] of the first `count` units."""
        kept = count * self._size
        solved = torch.cholesky_solve(self._wanted[:kept], self._factor[:kept, :kept])
        return solved.t().to(self._projection.dtype)

    def weights(self, count: int) -> Weights:
        """All weights of the option that keeps `count` units."""
        taken = self.units.take(self.dense, self.order[:count])
        return {**taken, OUTPUT[self._kind]: self.output(count).t().contiguous().t()}

    def reference(self, plan: Plan | None) -> Weights | None:
        """What the reference runs here: the dense weights, or the plan's option; None where that is gone."""
        if plan is None:
            return self.dense
        sublayer = plan.at(self._block, self._kind)
        if sublayer.gone:
            return None
        count = int(sublayer.get(self._setting))
        full = count == self.units.count and not self._follow
        return self.dense if full else self.weights(count)
