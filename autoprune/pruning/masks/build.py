"""Masked ladders with the statistics that their method asks for, from the cache or gathered now."""

from __future__ import annotations

from autoprune.cache import Cache
from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress
from autoprune.pruning.criteria.gradients import StoredGradients, gradient_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.pruning.masks.methods import needs
from autoprune.pruning.masks.statistics import Statistics, statistics_folder
from autoprune.pruning.recipe import LadderRecipe


def masked(
    ladders: StoredLadders,
    adapter: Adapter,
    model_digest: str,
    recipe: LadderRecipe,
    cache: Cache,
    method: str,
    memory_bytes: int = 512 << 20,
    progress: Progress | None = None,
    experts: bool = True,
) -> MaskedLadders:
    """Masks by `method` over the ladders, chosen on the recipe's calibration windows; of experts too, where asked."""
    given = adapter, model_digest, recipe.windows, recipe.sequences, cache, progress, experts
    found = statistics_folder(*given)
    gradients = None
    if kinds := needs(method):
        folder = gradient_folder(adapter, model_digest, recipe.windows, kinds, cache, progress)
        gradients = StoredGradients(folder)
    return MaskedLadders(ladders, adapter, Statistics(found), method, memory_bytes, gradients)
