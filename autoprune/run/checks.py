"""Before a run spends anything: is KL(dense) zero, will it fit?"""

from __future__ import annotations

import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import MeasurementError, SettingError, UnsupportedModelError
from autoprune.evaluation import Evaluation, Failure
from autoprune.objective import Fidelity, Split
from autoprune.precision import FULL
from autoprune.run.parts import Parts
from autoprune.study import Budget, Phase

KL_DENSE = 1e-5
KL_ROUNDED = 5e-3  # of the dense plan with products in bf16; 1e-4 is usual
BYTES_PER_RESULT = 4096
TEACHER = 512 * 6 + 32 * 8  # bytes a token of the divergence's defaults, at most
SPARE = 1.25  # what a table leaves for the plans that it is measured for, itself included


@dataclass(frozen=True)
class Estimate:
    """What a run will take, from one timed evaluation of the dense plan."""

    tokens: int
    seconds: float
    bytes: int


def check_budget(phase: Phase, whole: Budget) -> None:
    """Raise SettingError when a first phase cannot pay for its first evaluation, or for the table it goes by.

    `whole` is the run's budget, of which the phase has a share.
    """
    asked = phase.searcher.ask(phase.searcher.batch)
    table = bool(getattr(phase.searcher, "probes", False))
    needed = asked if table else asked[:1]
    windows = {(phase.space.decode(p.candidate).key, p.fidelity): p.fidelity.count for p in needed}
    spare = SPARE if table else 1.0
    count = math.ceil(spare * sum(windows.values())) * phase.window
    said = f"the search starts with {sum(windows.values())} windows of {phase.window} tokens"
    if table:
        said += f" for the {len(windows)} plans that it learns from first"
    _check_share("tokens", count, phase.budget.tokens, whole.tokens, said)
    _check_share(
        "evaluations", math.ceil(spare * len(windows)), phase.budget.evaluations, whole.evaluations, said
    )


def _check_share(name: str, needed: int, given: int | None, whole: int | None, said: str) -> None:
    if given is None or whole is None or given >= needed:
        return
    least = needed * math.ceil(whole / max(given, 1))
    raise SettingError(f"{name}={whole:g} does not pay for it: {said}; give at least {name}={least}")


def check_dense(parts: Parts, evaluation: Evaluation, windows: int) -> float:
    """Score the dense plan, refuse KL above 1e-5, of rounded products 5e-3; returns its seconds after a warm-up.

    A plan that keeps all of a model of smaller hidden width is not dense: any KL will do.
    """
    fidelity = Fidelity(Split.FITNESS, (0, min(windows, int(parts.cfg.sequences))))
    evaluation.evaluate([parts.dense_plan()], fidelity)
    start = time.perf_counter()
    outcome = evaluation.evaluate([parts.dense_plan()], fidelity)[0]
    seconds = time.perf_counter() - start
    if isinstance(outcome, Failure):
        raise UnsupportedModelError(f"model={parts.loaded.name} fails on its own: {outcome.reason}")
    kl, shape = outcome.metrics.get("kl", 0.0), parts.adapter.shape
    if parts.given is not None and parts.given.wider(shape):
        return seconds / fidelity.count
    if evaluation.precision != FULL and abs(kl) > KL_ROUNDED:
        raise SettingError(
            f"precision={evaluation.precision} is too coarse for this model: its dense plan has a KL of {kl:.2e} "
            f"by rounding alone, above {KL_ROUNDED:.0e}; allowed: precision={FULL}"
        )
    if evaluation.precision == FULL and not abs(kl) <= KL_DENSE:
        raise MeasurementError(
            f"KL of the dense plan is {kl:.2e}, above {KL_DENSE:.0e}; the ladders are wrong"
        )
    return seconds / fidelity.count


def estimate(parts: Parts, seconds_per_window: float, folder: Path) -> Estimate:
    """Tokens, time and bytes of the whole run; raises SettingError when the disk cannot hold it."""
    cfg = parts.cfg
    plans = int(cfg.finalists) + 3 * len(cfg.uniform)
    final = plans * int(cfg.selection_windows) + (int(cfg.front_points) + len(cfg.uniform)) * int(
        cfg.test_windows
    )
    windows = int(cfg.tokens) // int(cfg.window) + final
    teacher = (int(cfg.selection_windows) + int(cfg.test_windows) + 512) * int(cfg.window) * TEACHER
    size = int(cfg.tokens) // (2 * int(cfg.window)) * BYTES_PER_RESULT + teacher
    size += 2 * sum(p.numel() for p in parts.loaded.model.parameters()) * parts.adapter.shape.bytes_per_value
    free = min(shutil.disk_usage(folder).free, shutil.disk_usage(parts.cache.root).free)
    if size > free:
        raise SettingError(
            f"out={folder}: the run may need {size / 1e6:.0f} MB on disk and {free / 1e6:.0f} MB are free; "
            "free some, or ask for fewer tokens="
        )
    return Estimate(windows * int(cfg.window), windows * seconds_per_window, size)
