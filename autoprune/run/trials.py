"""A plan's quality after a short recovery: the evaluation of searches that can pay for one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from autoprune.errors import SettingError
from autoprune.evaluation import Scores
from autoprune.executors.base import Spec
from autoprune.objective import Fidelity, Objective
from autoprune.progress import Progress
from autoprune.run.parts import search_evaluation
from autoprune.run.recovery import make_setting, recovery_of, train
from autoprune.run.remote import parts_of
from autoprune.space import Plan

Report = Callable[[int, Scores], None]


class Trials:
    """Builds plans, trains them and scores them on fitness windows, in one process, one after the other."""

    def __init__(self, spec: Spec, steps: int | None, every: int) -> None:
        """`steps` of each training, None for those of `recovery=…`; scored `every` so many, and at the end.

        Raises SettingError without a recovery.
        """
        self._parts = parts_of(spec)
        cfg = self._parts.cfg
        recovery = recovery_of(cfg)
        if recovery is None:
            raise SettingError("executor=tune trains every plan: set recovery=distill, or take executor=ray")
        self.steps = recovery.steps if steps is None else steps
        settings = replace(recovery, steps=self.steps, check_every=every, save_every=every)
        evaluation = search_evaluation(self._parts, [Objective(str(m)) for m in cfg.objectives])
        prompt = getattr(self._parts.adapter, "prompt_len", None)
        self._setting = make_setting(
            cfg, self._parts.loaded, self._parts, evaluation.evaluators, settings, prompt
        )

    def run(self, plan: Plan, fidelity: Fidelity, folder: Path, report: Report) -> None:
        """Train a plan; `report` hears its scores on the fidelity's windows after every so many steps.

        `folder` keeps the state: a training that was cut short goes on from there, and reports what follows. Raises
        ArithmeticError when it diverges.
        """

        def judged(step: int, model: Any) -> float:
            scores = self._setting.scoring.scores(model, fidelity)
            if not all(math.isfinite(v) for v in scores.metrics.values()):
                raise ArithmeticError(f"the recovery of plan {plan.key} is not finite after {step} steps")
            if step or not self.steps:
                report(step, scores)
            return float(-step)  # the last weights: nothing is kept of what a search trains

        model = self._parts.build(plan, dtype=torch.float32)
        dtype = self._parts.loaded.dtype
        done = train(model, dtype, self._setting, folder, Progress(quiet=True), judged)
        if done.diverged is not None:
            raise ArithmeticError(f"the recovery of plan {plan.key} diverged at step {done.diverged + 1}")
