"""The hidden width of a run: a base transform, made before anything is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.shape import AnalyticCosts, Shape, full_plan
from autoprune.space import plan_cost

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.cache import Cache
    from autoprune.data import Corpus
    from autoprune.models.base import Adapter
    from autoprune.models.load import Loaded
    from autoprune.progress import Progress

FILE, NAME = "rotation.safetensors", "directions"


@dataclass(frozen=True)
class Given:
    """The model as it was named, where a run works on a narrower one: the teacher, and what ratios are to."""

    loaded: Loaded
    adapter: Adapter

    def wider(self, shape: Shape) -> bool:
        """Whether something was cut."""
        return self.adapter.shape.hidden > shape.hidden

    def costs(self, tokens: int) -> dict[str, float]:
        """Its analytic costs, dense."""
        shape = self.adapter.shape
        return dict(plan_cost(full_plan(shape), AnalyticCosts(shape, tokens)))

    def told(self, base: Mapping[str, float], width: int, tokens: int) -> str:
        """A line for the report."""
        own = self.costs(tokens)
        shares = ", ".join(
            f"{name} {base[name] / own[name]:.3f}x" for name in ("params", "params_total", "flops")
        )
        return (
            f"All plans have {width} of {self.adapter.shape.hidden} hidden dimensions, the dense row too ({shares}). "
            "Ratios and KL are to the model as given."
        )


def hidden_width(setting: Any, shape: Shape) -> int:
    """How many dimensions `hidden=` leaves: of a share the next multiple of the heads below.

    Raises UnsupportedModelError for a family that cannot be rotated, SettingError for a width that cannot be.
    """
    from autoprune.pruning.rotation import FAMILIES

    if shape.model_type not in FAMILIES:
        raise UnsupportedModelError(
            f"hidden={setting}: the family {shape.model_type!r} cannot be rotated; supported: {', '.join(FAMILIES)}"
        )
    text, heads, whole = str(setting), shape.heads, shape.hidden
    try:
        share = float(text.removesuffix("x")) if text.endswith("x") else None
        width = int(text) if share is None else int(share * whole) // heads * heads if share <= 1 else 0
    except (ValueError, OverflowError):
        width = 0
    if not 0 < width <= whole or width % heads:
        raise SettingError(
            f"hidden={setting} must be a share of the hidden size, as 0.9x, or a multiple of {heads} (the heads): "
            f"{heads} to {whole}"
        )
    return width


def narrowed(
    cfg: DictConfig, given: Given, corpus: Corpus, cache: Cache, progress: Progress
) -> tuple[Loaded, Adapter]:
    """The rotated and cut model; its directions are found now, or taken from the cache."""
    from safetensors.torch import load_file, save_file

    from autoprune.models import adapter_for
    from autoprune.pruning.rotation import directions, rotated
    from autoprune.run.calibration import calibration_windows

    if cfg.stream != "off":
        raise SettingError(
            f"hidden={cfg.hidden} makes a model in memory; it does not go with stream={cfg.stream}"
        )
    loaded, adapter = given.loaded, given.adapter
    width, windows = hidden_width(cfg.hidden, adapter.shape), calibration_windows(cfg, corpus)
    inputs = [loaded.digest, corpus.digest, windows.shape, int(cfg.calibration.seed), int(cfg.sequences)]
    stream: Any = adapter
    with progress.stage("finding directions") as step:

        def build(folder: Path) -> None:
            turn = directions(stream, windows, int(cfg.sequences), step)
            save_file({NAME: turn.contiguous().cpu()}, folder / FILE)

        folder = cache.folder("rotation", inputs, build)
    turn = load_file(folder / FILE)[NAME].to(loaded.model.device)
    model = rotated(stream, turn, width)
    digest = f"{loaded.digest}-{folder.name[:8]}-{width}"
    return replace(loaded, model=model, digest=digest), adapter_for(model, cfg.adapter)
