"""Refit ladders: at every option the surviving columns of the output projection are solved anew, in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from autoprune.models.base import Adapter, Weights
from autoprune.pruning.calibration import Progress, Stream
from autoprune.pruning.criteria.gradients import Gradients
from autoprune.pruning.experts import ExpertSite, routed
from autoprune.pruning.ladders import OUTPUT, LadderFile, columns
from autoprune.pruning.moments import Moments, regular
from autoprune.pruning.ranking import unit_order
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, Kind, Plan, SublayerPlan


def build_refit(
    adapter: Adapter,
    recipe: LadderRecipe,
    folder: Path,
    progress: Progress | None = None,
    gradients: Gradients | None = None,
) -> None:
    """Rank, refit every option, and write the ladder file into `folder`.

    The full option stays the dense weights, unless the recipe follows the dense model.
    """
    file, total = LadderFile(folder), adapter.shape.blocks * len(KINDS)
    with torch.inference_mode(), regular(recipe.damping):
        stream = Stream(adapter, recipe.windows, recipe.sequences, recipe.relative)
        for block in range(adapter.shape.blocks):
            for position, kind in enumerate(KINDS, 1):
                site = _site(adapter, block, kind, stream, recipe, recipe.follow, gradients)
                site.write(file, refit=True)
                sublayer = None if recipe.reference is None else recipe.reference.at(block, kind)
                stream.advance(block, kind, site.reference(recipe.reference), site.dense, sublayer)
                if progress is not None:
                    progress(block * len(KINDS) + position, total)
    file.save()


def refit_plan(
    adapter: Adapter, plan: Plan, recipe: LadderRecipe, gradients: Gradients | None = None
) -> FixedWeights:
    """The weights of one plan, refit once more in its own company: sublayer after sublayer brings the hidden states of
    the compressed model back towards the dense model's. Sublayers that keep everything are refit, too."""
    found: dict[tuple[int, Kind], Weights] = {}
    with torch.inference_mode(), regular(recipe.damping):
        stream = Stream(adapter, recipe.windows, recipe.sequences, recipe.relative)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                sublayer = plan.at(block, kind)
                if sublayer.gone:
                    stream.advance(block, kind, None, adapter.weights(block, kind))
                    continue
                site = _site(adapter, block, kind, stream, recipe, True, gradients)
                found[block, kind] = site.weights(sublayer)
                stream.advance(block, kind, found[block, kind], site.dense, sublayer)
    return FixedWeights(found)


class FixedWeights:
    """The weights of one plan's sublayers, as a ladder that has no other option."""

    def __init__(self, weights: Mapping[tuple[int, Kind], Weights]) -> None:
        self._weights = weights

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that is not gone."""
        return self._weights[block, plan.kind]


def _site(
    adapter: Adapter,
    block: int,
    kind: Kind,
    stream: Stream,
    recipe: LadderRecipe,
    follow: bool,
    gradients: Gradients | None,
) -> _Site | ExpertSite:
    if routed(adapter, kind):
        return ExpertSite(adapter, block, stream, recipe)
    return _Site(adapter, block, kind, stream.moments(block, kind, follow), recipe, gradients)


class _Site:
    """One sublayer with its moments: its order and its refit options.

    W_K = wanted_K^T (H_KK)^-1 is the least-squares output projection over the kept columns K only, with damping that
    pulls it towards the dense one (card A1, its last step; card A5). Kept columns are prefixes of one order, so one
    Cholesky factor holds the factors of all options.
    """

    def __init__(
        self,
        adapter: Adapter,
        block: int,
        kind: Kind,
        moments: Moments,
        recipe: LadderRecipe,
        gradients: Gradients | None,
    ) -> None:
        self.units, self.dense = adapter.units(kind), adapter.weights(block, kind)
        self._follow = recipe.follow
        self._setting, self._block, self._kind = adapter.unit_setting(kind), block, kind
        self._recipe = recipe
        self._projection = self.dense[OUTPUT[kind]]
        self._size = self._projection.shape[1] // self.units.count
        second, added = moments.damped(recipe.damping)
        wanted = moments.cross + added * self._projection.double().t()
        best = torch.linalg.solve(second, wanted).t()  # what all columns together would be: ranked against it
        self.order = unit_order(adapter, (block, kind), moments, (second, best), recipe, gradients)
        at = columns(self.order, self.units.count, self._size)
        self._wanted, self._factor = wanted[at], torch.linalg.cholesky(second[at][:, at])

    def write(self, file: LadderFile, refit: bool) -> None:
        """Into a ladder file, with every option's own output projection where it is `refit`."""
        file.site(self._block, self._kind, self.units, self.dense, self.order)
        for count in self._recipe.counts(self._block, self._kind, self._setting) if refit else ():
            if 0 < count < self.units.count + self._follow:
                file.option(self._block, self._kind, count, self.output(count))

    def output(self, count: int) -> Tensor:
        """The refit output projection [out, count x size] of the first `count` units."""
        kept = count * self._size
        solved = torch.cholesky_solve(self._wanted[:kept], self._factor[:kept, :kept])
        return solved.t().to(self._projection.dtype)

    def weights(self, plan: SublayerPlan) -> Weights:
        """All weights of a plan's sublayer."""
        count = int(plan.get(self._setting))
        taken = self.units.take(self.dense, self.order[:count])
        return {**taken, OUTPUT[self._kind]: self.output(count).t().contiguous().t()}

    def reference(self, plan: Plan | None) -> Weights | None:
        """What the reference runs here: the dense weights, or the plan's option; None where that is gone."""
        if plan is None:
            return self.dense
        sublayer = plan.at(self._block, self._kind)
        if sublayer.gone:
            return None
        full = int(sublayer.get(self._setting)) == self.units.count and not self._follow
        return self.dense if full else self.weights(sublayer)
