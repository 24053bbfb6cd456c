"""Nested ladders: one importance order per site; each option is a zero-copy prefix of the reordered weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress, Stream
from autoprune.pruning.criteria.gradients import Gradients
from autoprune.pruning.experts import ExpertSite, routed
from autoprune.pruning.ladders import OUTPUT, LadderFile, columns
from autoprune.pruning.moments import Moments, regular
from autoprune.pruning.ranking import unit_order
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, Kind


def build_nested(
    adapter: Adapter,
    recipe: LadderRecipe,
    folder: Path,
    progress: Progress | None = None,
    gradients: Gradients | None = None,
) -> None:
    """Rank the units of every site on the dense model's moments and write the ladder file into `folder`."""
    file, total = LadderFile(folder), adapter.shape.blocks * len(KINDS)
    with torch.inference_mode(), regular(recipe.damping):
        stream = Stream(adapter, recipe.windows, recipe.sequences)
        for block in range(adapter.shape.blocks):
            for position, kind in enumerate(KINDS, 1):
                weights = adapter.weights(block, kind)
                if routed(adapter, kind):
                    ExpertSite(adapter, block, stream, recipe).write(file, refit=False)
                else:
                    moments = stream.moments(block, kind)
                    second, _ = moments.damped(recipe.damping)
                    target = second, weights[OUTPUT[kind]]
                    order = unit_order(adapter, (block, kind), moments, target, recipe, gradients)
                    file.site(block, kind, adapter.units(kind), weights, order)
                    if recipe.bias and f"{OUTPUT[kind]}_bias" in weights:
                        _compensate(file, adapter, (block, kind), moments, order, recipe)
                stream.advance(block, kind, weights, weights)
                if progress is not None:
                    progress(block * len(KINDS) + position, total)
    file.save()


def _compensate(
    file: LadderFile,
    adapter: Adapter,
    place: tuple[int, Kind],
    moments: Moments,
    order: Tensor,
    recipe: LadderRecipe,
) -> None:
    """Every option's bias: what the dropped units gave on average is added, so that the mean output stays (card B2)."""
    (block, kind), units = place, adapter.units(place[1])
    weights, mean = adapter.weights(block, kind), moments.total / moments.count
    projection, bias = weights[OUTPUT[kind]].double(), weights[f"{OUTPUT[kind]}_bias"]
    size = projection.shape[1] // units.count
    for count in recipe.counts(block, kind, adapter.unit_setting(kind)):
        if 0 < count < units.count:
            gone = columns(order[count:], units.count - count, size)
            file.bias(block, kind, count, (bias.double() + projection[:, gone] @ mean[gone]).to(bias.dtype))
