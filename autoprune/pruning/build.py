"""Ladders from the cache, or built now."""

from __future__ import annotations

from pathlib import Path

from autoprune.cache import Cache
from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.criteria.gradients import StoredGradients, gradient_folder
from autoprune.pruning.nested import build_nested
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import build_refit


def ladder_folder(
    adapter: Adapter, model_digest: str, recipe: LadderRecipe, cache: Cache, progress: Progress | None = None
) -> Path:
    """The ladder folder of a model and recipe."""
    build = build_refit if recipe.ladder == "refit" else build_nested
    family = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    inputs = [recipe.ladder, {"model": model_digest, "adapter": family, **recipe.identity()}]

    def make(folder: Path) -> None:
        gradients = criterion_gradients(adapter, model_digest, recipe, cache, progress)
        build(adapter, recipe, folder, progress, gradients)

    return cache.folder("ladders", inputs, make)


def criterion_gradients(
    adapter: Adapter, model_digest: str, recipe: LadderRecipe, cache: Cache, progress: Progress | None = None
) -> StoredGradients | None:
    """What the recipe's criterion asks for, gathered on its windows; None where it asks for none."""
    needs = CRITERIA[recipe.criterion].needs
    if not needs:
        return None
    return StoredGradients(gradient_folder(adapter, model_digest, recipe.windows, needs, cache, progress))
