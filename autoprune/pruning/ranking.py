"""Ranks the units of one sublayer of the dense model by a criterion."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoprune.models.base import Adapter, Units
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.criteria.base import Evidence, Inputs, Site
from autoprune.pruning.criteria.gradients import Gradients
from autoprune.pruning.ladders import OUTPUT
from autoprune.pruning.moments import Moments
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import Kind


def unit_order(
    adapter: Adapter,
    place: tuple[int, Kind],
    moments: Moments,
    target: tuple[Tensor, Tensor],
    recipe: LadderRecipe,
    gradients: Gradients | None,
) -> Tensor:
    """Units, the most important first; `target`: the damped second moments and the projection to rank against."""
    block, kind = place
    output, units = OUTPUT[kind], adapter.units(kind)

    def evidence(name: str, weight: Tensor) -> Evidence:
        where = f"block{block}.{kind}.{name}"
        inputs = partial(_inputs, moments, name == output)
        return Evidence(
            weight, where, inputs, _not_gathered, partial(_gradient, gradients, where, weight.device)
        )

    weights = adapter.weights(block, kind)
    matrices = {n: evidence(n, w) for n, w in weights.items() if w.ndim == 2}
    return CRITERIA[recipe.criterion].order(Site(matrices, units, output, *target))


def neuron_order(criterion: str, second: Tensor, down: Tensor, place: str) -> Tensor:
    """The neurons of one expert, from second moments [width, width] and its output projection alone."""
    units = Units(down.shape[1], {"down": (1, 1)})
    found = Evidence(down, place, _not_gathered, _not_gathered, _not_gathered)
    return CRITERIA[criterion].order(Site({"down": found}, units, "down", second, down))


def _not_gathered(*_: object) -> Any:
    raise AssertionError("the criterion asks for what it does not say that it needs")


def _inputs(moments: Moments, output: bool) -> Inputs:
    assert output, "of other matrices nothing was gathered for ranking units"
    return Inputs(moments.second / moments.count, moments.total / moments.count)


def _gradient(gradients: Gradients | None, where: str, device: torch.device, kind: str) -> Tensor:
    assert gradients is not None, "the criterion asks for gradients that it does not name in `needs`"
    with torch.inference_mode(False):
        return gradients.get(kind, where).to(device).double()
