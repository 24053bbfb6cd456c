"""Where a run cuts its windows into a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.kv_policy import caches_less

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.models.base import Adapter
    from autoprune.shape import Shape
    from autoprune.sublayers import SpacePart

WHOLE = ("sliding", "tasks")  # evaluators that score what is read at once: no cache is cut there


def for_run(part: SpacePart, window: int) -> SpacePart:
    """The part, told how long windows are where it wants to know."""
    bind: Any = getattr(part, "for_window", None)
    return part if bind is None else bind(window)


def prompt_len(cfg: DictConfig, adapter: Adapter, parts: Sequence[SpacePart]) -> int | None:
    """Tokens of a window that are a prompt, after which the score begins; None: all tokens are scored.

    Half of the window unless told, where the space has genes of the KV cache. Raises SettingError for a prompt that
    leaves nothing to score, UnsupportedModelError for a family without a cache.
    """
    wanted, window = cfg.prompt_len, int(cfg.window)
    cuts = any(caches_less(part.options(adapter.shape)) for part in parts)
    if (cuts or wanted is not None) and not hasattr(adapter, "prompt_len"):
        said = "space=[kv_cache]" if cuts else f"prompt_len={wanted}"
        raise UnsupportedModelError(f"{said}: a {adapter.shape.model_type} has no KV cache")
    if wanted is not None and int(wanted) > window - 2:
        raise SettingError(
            f"prompt_len={wanted} leaves nothing to score in windows of {window} tokens; "
            f"allowed: 1 to {window - 2}, or a longer window="
        )
    if wanted is None:
        return window // 2 if cuts else None
    return int(wanted)


def check_evaluators(cfg: DictConfig, parts: Sequence[SpacePart], shape: Shape) -> None:
    """Raise SettingError for an evaluator in which no cache is cut although the space is about that."""
    if not any(caches_less(part.options(shape)) for part in parts):
        return
    for name in WHOLE:
        if name in cfg.evaluator:
            raise SettingError(
                f"evaluator={name} scores text that is read at once, where the KV cache of space=[kv_cache] is never "
                "used; leave it out, or use needle or exact_match, which decode"
            )
