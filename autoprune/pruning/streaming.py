"""Which KV groups should keep everything: those whose absence from the far past changes a block's output most."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoprune.kv_policy import Streaming
from autoprune.models.base import Adapter, Weights
from autoprune.pruning.calibration import Progress
from autoprune.pruning.ladders import OUTPUT, StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, SublayerPlan

FILE = "streaming.safetensors"
WINDOWS = 32  # of the calibration windows: an error is a sum over all their tokens


@torch.inference_mode()
def streaming_errors(
    adapter: Adapter, recipe: LadderRecipe, policy: Streaming, progress: Progress | None = None
) -> Tensor:
    """What it does to a block's attention output when a KV group streams, [blocks, groups].

    The squared difference of the dense model's output after each prompt, summed over calibration tokens; the other
    groups keep everything.
    """
    shape = adapter.shape.blocks, adapter.shape.kv_groups
    found = torch.zeros(shape, dtype=torch.float64)
    plan = SublayerPlan.of(
        "attention",
        kv_full=adapter.shape.kv_groups,
        kv_full_groups=0,
        kv_groups=adapter.shape.kv_groups,
        kv_recent=policy.recent,
        kv_sink=policy.sink,
    )
    rows = torch.from_numpy(recipe.windows[:WINDOWS].astype("int64"))
    states = [adapter.embed(chunk) for chunk in rows.split(recipe.sequences)]
    for block in range(adapter.shape.blocks):
        weights = adapter.weights(block, "attention")
        projection = weights[OUTPUT["attention"]].unflatten(1, (adapter.shape.kv_groups, -1)).transpose(0, 1)
        for state in states:
            whole, cut = (adapter.inner(block, "attention", state, weights, p) for p in (None, plan))
            missing = (whole - cut).unflatten(-1, (adapter.shape.kv_groups, -1)).movedim(-2, 0)
            changed = missing.flatten(1, 2) @ projection.transpose(-1, -2)
            found[block] += changed.double().square().sum((1, 2)).cpu()
        for kind in KINDS:
            dense = adapter.weights(block, kind)
            states = [adapter.run_sublayer(block, kind, state, dense) for state in states]
        if progress is not None:
            progress(block + 1, adapter.shape.blocks)
    return found


def save_errors(errors: Tensor, folder: Path) -> None:
    """Write them into a folder."""
    save_file({"errors": errors}, folder / FILE)


def load_errors(folder: Path) -> Tensor:
    """What `save_errors` wrote."""
    return load_file(folder / FILE)["errors"]


class StreamingLadders(StoredLadders):
    """Stored ladders whose kept KV groups stand in the order in which they should keep everything."""

    def __init__(self, adapter: Adapter, folder: Path, errors: Tensor) -> None:
        super().__init__(adapter, folder)
        self._errors = errors
        self._sorted: dict[tuple[int, int], Weights] = {}

    def weights(self, block: int, plan: SublayerPlan) -> Weights:
        """The weights of a sublayer; copies where its KV groups change places."""
        found = super().weights(block, plan)
        if plan.kind != "attention":
            return found
        count = int(plan.get("kv_groups"))
        if not self._holds_views:
            order = self._order(block, super().kept(block, plan))
            return self._units["attention"]["kv_groups"].take(found, order)
        if (block, count) not in self._sorted:
            order = self._order(block, super().kept(block, plan))
            self._sorted[block, count] = self._units["attention"]["kv_groups"].take(found, order)
        return self._sorted[block, count]

    def kept(self, block: int, plan: SublayerPlan) -> list[int]:
        """Unit indices of the dense model that a sublayer keeps, in the order in which its weights hold them."""
        found = super().kept(block, plan)
        if plan.kind != "attention":
            return found
        return [found[i] for i in self._order(block, found).tolist()]

    def _order(self, block: int, kept: list[int]) -> Tensor:
        return self._errors[block][torch.tensor(kept)].argsort(descending=True, stable=True)
