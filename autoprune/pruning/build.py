"""Ladders from the cache, or built now."""

from __future__ import annotations

from pathlib import Path

from autoprune.cache import Cache
from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress
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
    return cache.folder("ladders", inputs, lambda folder: build(adapter, recipe, folder, progress))
