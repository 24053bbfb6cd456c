"""What the calibration settings stand for, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.config import BASELINES
from autoprune.data import Corpus, Windows
from autoprune.errors import DataError, SettingError, SpaceError, nearest
from autoprune.objective import Split
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.criteria.experts import EXPERT_CRITERIA
from autoprune.pruning.masks.experts import masks_experts
from autoprune.pruning.masks.methods import METHODS, needs
from autoprune.pruning.recipe import EXPERT_CRITERION, LADDERS, LadderRecipe
from autoprune.run.baselines import Named, baseline_candidates
from autoprune.shape import AnalyticCosts, Shape, full_plan
from autoprune.space import Plan, is_mask
from autoprune.sublayers import join, joint_options

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.sublayers import SpacePart

TOKENS = 65_536  # calibration tokens when nothing is said


def recipe_of(
    cfg: DictConfig,
    shape: Shape,
    corpus: Corpus,
    space_parts: Sequence[SpacePart],
    named: Named | None = None,
) -> LadderRecipe:
    """The ladder recipe of a run; raises SettingError or DataError naming the setting.

    `named` gives the allocators that a reference may name.
    """
    settings = cfg.calibration
    _check_words(settings)
    experts = _expert_criterion(settings.expert_criterion, shape)
    if shape.experts and not CRITERIA[settings.criterion].experts:
        known = ", ".join(name for name, found in CRITERIA.items() if found.experts)
        raise SettingError(
            f"calibration.criterion={settings.criterion} does not rank the neurons of experts; allowed: {known}"
        )
    name = "calibration.reference"
    reference = named_plan(str(settings.reference), shape, space_parts, int(cfg.window), name, named)
    if reference is not None and settings.ladder != "refit":
        raise SettingError(
            f"calibration.reference={settings.reference} needs calibration.ladder=refit: "
            "nested ladders keep the dense weights"
        )
    _check_relative(settings, shape)
    _check_bias(settings, shape)
    if shape.experts:
        _check_masked_experts(cfg, joint_options(space_parts, shape))
    if reference is not None and reference.unmasked == full_plan(shape):
        raise SettingError(f"{name}={settings.reference} keeps all units: there is nothing to refit behind")
    return LadderRecipe(
        windows=calibration_windows(cfg, corpus),
        sequences=int(cfg.sequences),
        ladder=str(settings.ladder),
        criterion=str(settings.criterion),
        damping=float(settings.damping),
        options={n: o for n, o in joint_options(space_parts, shape).items() if not is_mask(n)},
        reference=None if reference is None else reference.unmasked,
        expert_criterion=experts,
        seed=int(settings.seed),
        bias=bool(settings.bias),
        relative=bool(settings.relative),
    )


def _check_words(settings: DictConfig) -> None:
    """Raise SettingError for a word that is none of those allowed."""
    choices = {"ladder": LADDERS, "criterion": tuple(CRITERIA), "mask": tuple(METHODS)}
    for name, allowed in choices.items():
        if settings[name] not in allowed:
            raise SettingError(
                f"calibration.{name}={settings[name]} is unknown" + nearest(settings[name], allowed)
            )


def _check_relative(settings: DictConfig, shape: Shape) -> None:
    """Raise SettingError where nothing is solved with the weights of tokens, or only a part."""
    if not settings.relative:
        return
    if settings.ladder != "refit":
        raise SettingError(
            "calibration.relative=true needs calibration.ladder=refit: nested ladders solve nothing"
        )
    if shape.experts:
        raise SettingError(
            f"calibration.relative=true weighs no tokens of experts, and the family {shape.model_type!r} has some"
        )


def _check_bias(settings: DictConfig, shape: Shape) -> None:
    """Raise SettingError where there is no bias to compensate with, or nothing left to compensate."""
    if not settings.bias:
        return
    if settings.ladder != "nested":
        raise SettingError(
            "calibration.bias=true needs calibration.ladder=nested: refit ladders solve what is kept anew"
        )
    output = shape.attention_bias if shape.output_bias is None else shape.output_bias
    if not output and not shape.ffn_bias:
        raise SettingError(
            f"calibration.bias=true needs a family whose output projections have biases; {shape.model_type!r} has none"
        )


def _check_masked_experts(cfg: DictConfig, names: Iterable[str]) -> None:
    """Raise SettingError for what masks of experts do not go with: mixed experts, and gradients, which they lack."""
    if not masks_experts(names):
        return
    spared = "keep experts out of masks with space.sparsity.matrices=[q,k,v,o]"
    if "merging" in cfg.space:
        raise SettingError(
            f"space: merging mixes experts, and sparsity masks each of them; leave one out, or {spared}"
        )
    if needs(method := str(cfg.calibration.mask)):
        known = ", ".join(name for name in METHODS if not needs(name))
        raise SettingError(
            f"calibration.mask={method} asks for gradients, which are not gathered of experts; allowed: {known}, "
            f"or {spared}"
        )


def mask_settings(cfg: DictConfig) -> tuple[str, int]:
    """How matrices are masked, and how many bytes of masked ones are held."""
    return str(cfg.calibration.mask), int(cfg.memory_mb) << 20


def _expert_criterion(name: str | None, shape: Shape) -> str | None:
    """None for a model without experts; raises SettingError naming what there is."""
    if name is not None and name not in EXPERT_CRITERIA:
        raise SettingError(f"calibration.expert_criterion={name} is unknown" + nearest(name, EXPERT_CRITERIA))
    if name is not None and not shape.experts:
        raise SettingError(
            f"calibration.expert_criterion={name} needs a model with experts; "
            f"the family {shape.model_type!r} has none"
        )
    return (name or EXPERT_CRITERION) if shape.experts else None


def calibration_windows(cfg: DictConfig, corpus: Corpus) -> Windows:
    """Windows of the calibration split, in an order that the seed decides; DataError when there are too few."""
    windows, wanted = corpus.windows(Split.CALIBRATION), cfg.calibration.tokens
    count = max(1, int(TOKENS if wanted is None else wanted) // int(cfg.window))
    if wanted is None:
        count = min(count, len(windows))
    if count > len(windows):
        have = len(windows) * int(cfg.window)
        raise DataError(
            f"calibration.tokens={wanted} but the calibration split has {have} tokens; ask for fewer or give more text"
        )
    order = np.random.default_rng([int(cfg.calibration.seed), 11]).permutation(len(windows))
    return windows[order[:count]]


def named_plan(
    text: str,
    shape: Shape,
    space_parts: Sequence[SpacePart],
    tokens: int,
    setting: str,
    named: Named | None = None,
) -> Plan | None:
    """The plan that a setting names by `uniform@r`, `owl@r` …, a checkpoint or a plan file; None for `dense`."""
    if text == "dense":
        return None
    space = join(space_parts, shape, [AnalyticCosts(shape, tokens)])
    name, at, ratio = text.partition("@")
    if at and name in BASELINES:
        try:
            found = baseline_candidates(space, name, float(ratio), "params", named, setting)
        except ValueError as error:
            raise SettingError(f"{setting}={text}: write a ratio, as in {name}@0.5") from error
        if not found:
            raise SettingError(f"{setting}={text}: no {name} plan is that small")
        return space.decode(found[0])
    return _plan_file(text, shape, setting)


def _plan_file(text: str, shape: Shape, setting: str) -> Plan:
    path = Path(text).expanduser()
    path = path / "autoprune_plan.json" if path.is_dir() else path
    if not path.is_file():
        raise SettingError(
            f"{setting}={text} is neither dense, nor a baseline@RATIO ({', '.join(BASELINES)}), "
            "nor a file with a plan"
        )
    try:
        plan = Plan.from_json(path.read_text(encoding="utf-8"))
    except (SpaceError, UnicodeDecodeError) as error:
        raise SettingError(f"{setting}={text}: not a plan") from error
    if plan.blocks != shape.blocks or any(g > shape.kv_groups or w > shape.ffn for g, w in plan.widths()):
        raise SettingError(
            f"{setting}={text} is a plan of another model; this one has {shape.blocks} blocks with up to "
            f"{shape.kv_groups} KV groups and FFN width {shape.ffn}"
        )
    return plan
