"""Ladders whose KV groups keep some of their query heads: those that give most to the block's output, refit."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.models.base import Adapter, Weights
from autoprune.pruning.calibration import Progress, Stream
from autoprune.pruning.ladders import OUTPUT, StoredLadders
from autoprune.pruning.moments import regular
from autoprune.pruning.recipe import LadderRecipe
from autoprune.shape import GROUP_HEADS
from autoprune.space import KINDS, SublayerPlan

FILE = "heads.safetensors"


def build_heads(
    adapter: Adapter, recipe: LadderRecipe, folder: Path, progress: Progress | None = None
) -> None:
    """Write the damped second moments of what every dense block's heads give, [heads x head_dim] squared."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        stream = Stream(adapter, recipe.windows, recipe.sequences)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                weights = adapter.weights(block, kind)
                if kind == "attention":
                    second, _ = stream.moments(block, kind).damped(recipe.damping)
                    found[str(block)] = second.cpu().clone()
                stream.advance(block, kind, weights, weights)
            if progress is not None:
                progress(block + 1, adapter.shape.blocks)
    save_file(found, folder / FILE)


class HeadLadders(StoredLadders):
    """Stored ladders that take query heads out of the KV groups that a plan keeps, each group's weakest first.

    A head is worth the energy of what it gives to the block's output, tr(W_h S_hh W_h^T), S being the second moments of
    what enters the output projection. With `refit` the projection is solved anew for the heads that are left,
    W_K = W S_:K S_KK^-1.
    """

    def __init__(self, adapter: Adapter, folder: Path, moments: Path, recipe: LadderRecipe) -> None:
        super().__init__(adapter, folder)
        self._adapter, self._recipe, self._moments = adapter, recipe, moments / FILE
        self._cut: dict[tuple[int, int, int], Weights] = {}

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer; copies where groups lose heads."""
        found, whole = super().weights(block, plan), self._adapter.shape.heads_per_group
        heads = int(plan.get(GROUP_HEADS, whole)) if plan.kind == "attention" else whole
        if heads == whole:
            return found
        key = (block, int(plan.get("kv_groups")), heads)
        if key not in self._cut:
            self._cut[key] = self._without(block, self.kept(block, plan), heads, found)
        return self._cut[key]

    @torch.inference_mode()
    def heads(self, block: int, groups: list[int], count: int) -> Tensor:
        """Which heads each of these KV groups keeps, counted within the group and rising, [groups, count]."""
        return (
            self._worth(block)[groups]
            .argsort(dim=-1, descending=True, stable=True)[:, :count]
            .sort(-1)
            .values
        )

    def _worth(self, block: int) -> Tensor:
        """[groups, heads of each]."""
        shape, second = self._adapter.shape, self._second(block)
        output = self._adapter.weights(block, "attention")[OUTPUT["attention"]].double()
        found = []
        for head in range(shape.heads):
            own = slice(head * shape.head_dim, (head + 1) * shape.head_dim)
            found.append((output[:, own] @ second[own, own]).mul(output[:, own]).sum())
        return torch.stack(found).view(shape.kv_groups, -1)

    @torch.inference_mode()
    def _without(self, block: int, groups: list[int], heads: int, weights: Weights) -> Weights:
        size, whole = self._adapter.shape.head_dim, self._adapter.shape.heads_per_group
        kept = self.heads(block, groups, heads)
        here = _columns(torch.arange(len(groups), device=kept.device), kept, whole, size)
        found, output = dict(weights), OUTPUT["attention"]
        for name in (n for n in ("q", "q_bias") if n in weights):
            found[name] = weights[name].index_select(0, here).contiguous()
        found[output] = weights[output].index_select(1, here).contiguous()
        if self._recipe.ladder == "refit":
            every = torch.arange(whole, device=kept.device).expand(len(groups), -1)
            own = _columns(
                torch.tensor(groups, device=kept.device), every, whole, size
            )  # of the dense model, in the ladder's order
            second = self._second(block)[own][:, own]
            with regular(self._recipe.damping):
                factor = torch.linalg.cholesky(second[here][:, here])
            solved = torch.cholesky_solve((weights[output].double() @ second[:, here]).mT, factor).mT
            found[output] = solved.to(weights[output].dtype).contiguous()
        return found

    def _second(self, block: int) -> Tensor:
        with safe_open(self._moments, framework="pt") as file:
            found: Tensor = file.get_tensor(str(block))
        return found.to(self._adapter.model.device)


def _columns(groups: Tensor, heads: Tensor, whole: int, size: int) -> Tensor:
    """Columns of the output projection that these heads [groups, n] of these groups own."""
    first = groups[:, None] * whole + heads
    return (first[..., None] * size + torch.arange(size, device=first.device)).flatten()
