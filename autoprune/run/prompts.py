"""Where a run cuts its windows into a prompt and what follows it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, UnsupportedModelError
from autoprune.kv_policy import Streaming, caches_less, decodes_otherwise, drops_prompt, policy_of
from autoprune.shape import GROUP_HEADS
from autoprune.space import SublayerPlan, is_mask
from autoprune.sublayers import Settled

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from autoprune.cache import Cache
    from autoprune.models.base import Adapter
    from autoprune.models.load import Loaded
    from autoprune.progress import Progress
    from autoprune.pruning.ladders import StoredLadders
    from autoprune.pruning.recipe import LadderRecipe
    from autoprune.shape import Shape
    from autoprune.sublayers import SpacePart

REFIT = "{setting} ranks KV groups anew, after space.kv_cache.policy=streaming has ranked them; leave it out"
HEADS_REFIT = (
    "{setting} solves whole KV groups, and space=[heads] keeps some of their query heads; leave it out"
)
WHOLE = ("sliding", "tasks")  # evaluators that score what is read at once: no cache is cut there


def for_run(part: SpacePart, window: int) -> SpacePart:
    """The part, told how long windows are where it wants to know."""
    bind: Any = getattr(part, "for_window", None)
    return part if bind is None else bind(window)


def prompt_len(cfg: DictConfig, adapter: Adapter, parts: Sequence[SpacePart]) -> int | None:
    """Tokens of a window that are a prompt, after which the score begins; None: all tokens are scored.

    Half of the window unless told, where the space has genes of the KV cache or of prompt tokens. Raises SettingError
    for a prompt that leaves nothing to score, UnsupportedModelError for a family without a cache.
    """
    wanted, window = cfg.prompt_len, int(cfg.window)
    settings = {name for part in parts for name in part.options(adapter.shape)}
    cuts = decodes_otherwise(settings)
    cached = adapter.shape.task == "text" and hasattr(adapter, "prompt_len")
    if (cuts or wanted is not None) and not cached:
        said = f"space=[{_group(settings)}]" if cuts else f"prompt_len={wanted}"
        raise UnsupportedModelError(f"{said}: a {adapter.shape.model_type} has no KV cache")
    if wanted is not None and int(wanted) > window - 2:
        raise SettingError(
            f"prompt_len={wanted} leaves nothing to score in windows of {window} tokens; "
            f"allowed: 1 to {window - 2}, or a longer window="
        )
    if wanted is None:
        return window // 2 if cuts else None
    return int(wanted)


def check_settings(cfg: DictConfig, parts: Sequence[SpacePart], shape: Shape) -> None:
    """Raise SettingError for settings that do not go with genes of the KV cache or of prompt tokens."""
    settings = {name for part in parts for name in part.options(shape)}
    if GROUP_HEADS in settings:
        _check_heads(cfg, settings)
    if not decodes_otherwise(settings):
        return
    if caches_less(settings) and drops_prompt(settings):
        raise SettingError(
            "space: kv_cache and prefill_tokens both say which tokens a step has in sight; leave one out"
        )
    if cfg.export.refit and _streaming(shape, parts):
        raise SettingError(REFIT.format(setting="export.refit=true"))
    for name in WHOLE:
        if name in cfg.evaluator:
            raise SettingError(
                f"evaluator={name} scores text that is read at once, where the KV cache of space=[{_group(settings)}] "
                "is never used; leave it out, or use needle or exact_match, which decode"
            )


def _check_heads(cfg: DictConfig, settings: Iterable[str]) -> None:
    """What reads weights or KV groups in the ladders' own order does not know of heads that are missing."""
    if cfg.export.refit:
        raise SettingError(HEADS_REFIT.format(setting="export.refit=true"))
    if any(map(is_mask, settings)) or Streaming.gene in settings:
        other = "policy=streaming" if Streaming.gene in settings else "space=[sparsity]"
        raise SettingError(
            f"space: heads takes query heads out of KV groups that {other} ranks whole; leave one out"
        )


def _group(settings: Iterable[str]) -> str:
    """The group that such genes belong to."""
    return "kv_cache" if caches_less(settings) else "prefill_tokens"


def open_ladders(
    adapter: Adapter,
    loaded: Loaded,
    folder: Path,
    recipe: LadderRecipe,
    parts: Sequence[SpacePart],
    cache: Cache,
    progress: Progress,
) -> StoredLadders:
    """The ladders in a folder; where KV groups may stream, those that should not come first."""
    from autoprune.pruning.ladders import StoredLadders
    from autoprune.pruning.streaming import StreamingLadders, load_errors, save_errors, streaming_errors

    if any(GROUP_HEADS in part.options(adapter.shape) for part in parts):
        return _head_ladders(adapter, loaded, folder, recipe, cache, progress)
    policy = _streaming(adapter.shape, parts)
    if policy is None:
        return StoredLadders(adapter, folder)
    with progress.stage("ranking KV groups") as step:
        inputs = [loaded.digest, recipe.identity()["calibration"], recipe.sequences, adapter.prompt_len]
        found = cache.folder(
            "streaming",
            [*inputs, policy.sink, policy.recent],
            lambda to: save_errors(streaming_errors(adapter, recipe, policy, step), to),
        )
    return StreamingLadders(adapter, folder, load_errors(found))


def _head_ladders(
    adapter: Adapter, loaded: Loaded, folder: Path, recipe: LadderRecipe, cache: Cache, progress: Progress
) -> StoredLadders:
    from autoprune.pruning.heads import HeadLadders, build_heads

    with progress.stage("ranking query heads") as step:
        inputs = [loaded.digest, recipe.identity()["calibration"], recipe.sequences, recipe.damping]
        moments = cache.folder("heads", inputs, lambda to: build_heads(adapter, recipe, to, step))
    return HeadLadders(adapter, folder, moments, recipe)


def _streaming(shape: Shape, parts: Sequence[SpacePart]) -> Streaming | None:
    """The policy under which a group streams, where the space has genes for that."""
    for part in parts:
        if Streaming.gene in part.options(shape) and isinstance(part, Settled):
            settings = {"kv_groups": shape.kv_groups, Streaming.gene: 0, **part.settled(shape)}
            policy = policy_of(SublayerPlan.of("attention", **settings))
            assert isinstance(policy, Streaming)
            return policy
    return None
