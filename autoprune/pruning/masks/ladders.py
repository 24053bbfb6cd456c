"""Ladders whose matrices are masked: mask after slice, made on demand."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from autoprune.models.base import Adapter, Weights
from autoprune.patterns import masks_of
from autoprune.pruning.criteria.base import Evidence, Inputs
from autoprune.pruning.criteria.gradients import StoredGradients
from autoprune.pruning.ladders import OUTPUT, StoredLadders, columns
from autoprune.pruning.masks.bounded import Bounded
from autoprune.pruning.masks.methods import METHODS
from autoprune.pruning.masks.sparsegpt import DAMPING, factor
from autoprune.pruning.masks.statistics import Statistics
from autoprune.space import Kind, SublayerPlan


class MaskedLadders:
    """The weights that `ladders` give, thinned to the densities that a plan says.

    A masked matrix follows from the model, the statistics and its own settings alone, so every process makes the same
    one. A matrix that is kept whole is the ladders' own tensor. `memory_bytes` bounds what is held.
    """

    def __init__(
        self,
        ladders: StoredLadders,
        adapter: Adapter,
        statistics: Statistics,
        method: str,
        memory_bytes: int = 512 << 20,
        gradients: StoredGradients | None = None,
    ) -> None:
        self._ladders, self._adapter = ladders, adapter
        self.statistics, self.method = statistics, method
        self._gradients = gradients
        self._units = {kind: adapter.units(kind) for kind in OUTPUT}
        self._memory_bytes, self._held = memory_bytes, Bounded(memory_bytes)

    def over(self, ladders: StoredLadders) -> MaskedLadders:
        """The same masks over other ladders."""
        given = self.statistics, self.method, self._memory_bytes, self._gradients
        return MaskedLadders(ladders, self._adapter, *given)

    def quick(self) -> MaskedLadders:
        """The same sizes and densities with the masks that are fastest to choose: for looking at times."""
        return MaskedLadders(self._ladders, self._adapter, self.statistics, "magnitude", self._memory_bytes)

    @property
    def name(self) -> str:
        """Of all that decides the masks, besides the ladders."""
        gradients = "" if self._gradients is None else f"-{self._gradients.name}"
        return f"{self.method}-{self.statistics.name}{gradients}"

    def order(self, block: int, kind: Kind) -> list[int]:
        """Unit indices of the dense model, most important first."""
        return self._ladders.order(block, kind)

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer that is not gone."""
        found = dict(self._ladders.weights(block, plan.unmasked))
        for matrix, (pattern, option) in masks_of(plan).items():
            if found[matrix].ndim == 3:
                found[matrix] = self._experts(block, plan, matrix)[: len(found[matrix])]
                continue
            key = (block, plan.unmasked, matrix, pattern.text, option)
            make = partial(self._masked, block, plan, matrix, found[matrix])
            found[matrix] = self._held.get(key, make)
        return found

    def _experts(self, block: int, plan: SublayerPlan, matrix: str) -> Tensor:
        """A matrix of all experts, each masked on its own: the same however many of them a plan keeps."""
        pattern, option = masks_of(plan)[matrix]
        whole = SublayerPlan.of(plan.kind, width=int(plan.get("width")))

        def make() -> Tensor:
            stack = self._ladders.weights(block, whole)[matrix]
            found = [self._expert(block, whole, matrix, weight, at) for at, weight in enumerate(stack)]
            with torch.inference_mode(False), torch.no_grad():
                return torch.stack([METHODS[self.method](each, pattern, option) for each in found])

        return self._held.get((block, whole, matrix, pattern.text, option), make)

    def _expert(self, block: int, whole: SublayerPlan, matrix: str, weight: Tensor, at: int) -> Evidence:
        """Of the expert in place `at` of the ladders' order; the fewer tokens it saw, the more damping."""
        expert, width = self._ladders.experts(block)[at], int(whole.get("width"))

        def inputs() -> Inputs:
            device = self._adapter.model.device
            found = self.statistics.inputs(block, whole.kind, matrix, device, expert)
            if matrix != OUTPUT[whole.kind]:
                return found
            neurons: Any = self._ladders.order(block, whole.kind)[at]
            return found.at(torch.tensor(neurons[:width], device=device))

        def upper() -> Tensor:
            key = (block, whole if matrix == OUTPUT[whole.kind] else whole.kind, expert)
            rare = weight.shape[1] / max(1.0, self.statistics.tokens(block, expert))
            return self._held.get(key, lambda: factor(inputs().second, DAMPING * (1 + rare)))

        return Evidence(weight, f"block{block}.{whole.kind}.{matrix}.{expert}", inputs, upper, _ungathered)

    def _masked(self, block: int, plan: SublayerPlan, matrix: str, weight: Tensor) -> Tensor:
        pattern, option = masks_of(plan)[matrix]
        inputs = partial(self._inputs, block, plan, matrix)
        key = (block, plan.unmasked if matrix == OUTPUT[plan.kind] else plan.kind)
        evidence = Evidence(
            weight,
            f"block{block}.{plan.kind}.{matrix}",
            inputs,
            lambda: self._held.get(key, lambda: factor(inputs().second)),
            partial(self._gradient, block, plan, matrix),
        )
        with torch.inference_mode(False), torch.no_grad():  # proxies ask for gradients of these
            return METHODS[self.method](evidence, pattern, option)

    def _inputs(self, block: int, plan: SublayerPlan, matrix: str) -> Inputs:
        """Of an output projection those of the units that are kept, in the ladders' order."""
        found = self.statistics.inputs(block, plan.kind, matrix, self._adapter.model.device)
        if matrix != OUTPUT[plan.kind]:
            return found
        kept = torch.tensor(self._ladders.kept(block, plan), device=found.mean.device)
        return found.at(columns(kept, len(kept), self._units[plan.kind].slices[matrix][1]))

    def _gradient(self, block: int, plan: SublayerPlan, matrix: str, kind: str) -> Tensor:
        """Of the dense model, at the weights that are kept, in the ladders' order."""
        assert self._gradients is not None, "the method asks for gradients that it does not name in `needs`"
        found = self._gradients.get(kind, f"block{block}.{plan.kind}.{matrix}")
        whole = found.to(self._adapter.model.device)
        kept = torch.tensor(self._ladders.kept(block, plan), device=whole.device)
        return self._units[plan.kind].take({matrix: whole}, kept)[matrix].double()


def _ungathered(kind: str) -> Tensor:
    raise AssertionError(
        f"gradients ({kind}) of experts are not gathered: the run's settings are checked before"
    )
