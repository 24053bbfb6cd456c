"""Runs dear evaluations as trials of Ray Tune: every plan is trained a little before it is scored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import SettingError
from autoprune.executors.base import Spec
from autoprune.objective import Proposal, Result, Status
from autoprune.space import digest
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation
    from autoprune.executors.trials import Experiment


class Tune:
    """`workers` trials at a time, each a plan's recovery by `recovery=distill`; needs a recovery.

    workers: trials at a time; address: a Ray that runs already (auto, or host:port), null to start one here; steps:
    of every training, null for recovery.steps; first: steps after which a trial may first be given up, and between
    scores; halving: of trials that reach 1, 3, 9, … times `first` steps (for 3) this share goes on, 1 for all of
    them to the end; gpus: of each trial, parts of one allowed; retries: how often a trial that fails runs again.
    """

    def __init__(
        self,
        workers: int = 2,
        address: str | None = None,
        steps: int | None = None,
        first: int = 20,
        halving: int = 3,
        gpus: float = 0.0,
        retries: int = 1,
    ) -> None:
        from autoprune.executors.trials import check_installed

        bounds = {"workers": (workers, 1), "first": (first, 2), "halving": (halving, 1), "gpus": (gpus, 0)}
        bounds |= {"retries": (retries, 0)} | ({"steps": (steps, 2)} if steps is not None else {})
        for name, (value, least) in bounds.items():
            if value < least:
                raise SettingError(f"executor.{name}={value} is out of range; it must be at least {least}")
        check_installed()
        self.capacity = workers
        self._settings = {
            "steps": steps,
            "first": first,
            "halving": halving,
            "gpus": gpus,
            "retries": retries,
        }
        self._address = address
        self._experiment: Experiment | None = None
        self._open: dict[int, Job] = {}
        self._steps = 0.0
        self._trials = 0.0

    def begin(self, threads: int) -> None:
        """Trials start when there are some."""

    def open(self, evaluation: Evaluation, spec: Spec) -> None:
        """Trials build their models from this spec from now on; unfinished ones of a stopped run go on."""
        from autoprune.executors.trials import Experiment

        self.close()
        if not spec.settings.get("recovery"):
            raise SettingError("executor=tune trains every plan: set recovery=distill, or take executor=ray")
        name = digest(spec.settings["out"], spec.digests, spec.supernet and spec.supernet.to_json())[:16]
        folder = Path(spec.cache) / ".tune" / name
        self._experiment = Experiment(folder, spec, self.capacity, self._address, self._settings)

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""
        assert self._experiment is not None, "open() comes first"
        for job in batch:
            self._open[job.proposal.id] = job
            self._experiment.add(job)

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Results as trials end."""
        assert self._experiment is not None, "open() comes first"
        while self._open:
            told = self._experiment.next(timeout)
            if told is None:
                return
            job = self._open.pop(int(told["proposal"]), None)
            if job is not None:  # not one that an earlier process has waited for
                self._trials += 1
                self._steps += float(told.get("step", 0))
                yield _result(job.proposal, told)

    def counters(self) -> dict[str, float]:
        """Trials and training steps since the last call."""
        found = {"trials": self._trials, "recovery_steps": self._steps}
        self._trials = self._steps = 0.0
        return found

    def close(self) -> None:
        """End Tune, and Ray when it was started here; what is unfinished can be gone on with."""
        if self._experiment is not None:
            self._experiment.close()
            if not self._open:
                shutil.rmtree(self._experiment.folder, ignore_errors=True)
            self._experiment = None
        self._open = {}


def _result(proposal: Proposal, told: dict[str, Any]) -> Result:
    """What a trial's last report says."""
    if "error" in told:
        return Result(proposal, Status.FAILED, reason=str(told["error"]))
    metrics = {str(k): float(v) for k, v in told["metrics"].items()} | {"recovery_steps": float(told["step"])}
    per_window = {str(k): np.asarray(v, dtype=float) for k, v in told["per_window"].items()}
    return Result(proposal, Status.OK, metrics, per_window)
