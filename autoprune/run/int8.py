"""`export.int8=true`: whether a run can have it, and what rounding does to the quality of a checkpoint."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from autoprune.errors import KernelError, SettingError
from autoprune.objective import Split
from autoprune.patterns import pattern_of
from autoprune.recovery.scoring import Scoring
from autoprune.run.parts import held_out
from autoprune.space import is_mask

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.kernels.int8 import Rounded
    from autoprune.run.parts import Parts

SETTING = "export.int8=true"
SHOWN = ("kl", "perplexity")


def in_int8(cfg: DictConfig) -> bool:
    """Whether a run's checkpoints are stored in int8, and its latencies are those of such."""
    export = getattr(cfg, "export", None)  # a run of an earlier version has no such setting
    return bool(getattr(export, "int8", False))


def check_int8(parts: Parts, setting: str = SETTING) -> None:
    """Raise at once what exporting in int8 would raise at the end."""
    from autoprune.export.int8 import FORM
    from autoprune.export.int8 import check_int8 as check

    layout = getattr(parts.adapter, "layout", None)
    check(layout, parts.loaded.dtype, parts.adapter.shape.task != "text", setting)
    if not parts.cfg.latency.kernels:
        raise SettingError(f"{setting} runs on kernels, and latency.kernels=false measures without any")
    if parts.device.type != "cpu":
        raise SettingError(f"{setting} has kernels for the CPU only; leave device={parts.device.type} out")
    if "kl" not in {metric for e in parts.evaluators for metric in e.metrics}:
        raise SettingError(f"{setting} reports kl; add divergence to evaluator=[…]")
    if setting != SETTING:
        return  # an export: the plan itself is asked
    for name in filter(is_mask, parts.options()):
        if (pattern := pattern_of(name.partition(".")[2]).text) != FORM:
            raise KernelError(
                f"{setting}: no int8 kernel for the pattern {pattern}; there are: no mask, {FORM}"
            )


def figures_on_test(parts: Parts, model: Any, maps: Mapping[str, Rounded]) -> dict[str, float]:
    """KL and perplexity on *test* of a built model as stored, and with its linear maps and their tokens in int8."""
    from autoprune.export.int8 import NAMES, round_in_place

    evaluators = parts.evaluation(parts.evaluators).evaluators
    prompt = getattr(parts.adapter, "prompt_len", None)
    scoring = Scoring(parts.corpus, evaluators, int(parts.cfg.sequences), prompt)
    test = held_out(parts.cfg, parts.corpus, Split.TEST)
    exact = copy.deepcopy(model).to("cpu", torch.float32).eval()
    found = {NAMES[parts.loaded.dtype]: scoring.score(exact, test)}
    found["int8"] = scoring.score(round_in_place(exact, maps), test)
    return {f"{name}_{way}_test": of[name] for name in SHOWN for way, of in found.items() if name in of}


def told(figures: Mapping[str, float]) -> str:
    """Both, in one line."""
    said = [f"{name.removesuffix('_test')} {value:.4f}" for name, value in figures.items()]
    return f"as stored, on test: {', '.join(said)}"
