"""Runs evaluations in this process, one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autoprune.executors.base import Spec, result
from autoprune.executors.task import in_groups
from autoprune.objective import Result
from autoprune.out_of_memory import evaluate_within
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation


class Serial:
    """Evaluates each batch in one supernet pass per fidelity."""

    capacity = 1

    def __init__(self) -> None:
        self._evaluation: Evaluation | None = None
        self._queue: list[Job] = []
        self._seen = (0, 0)
        self._thread_seconds = 0.0

    def begin(self, threads: int) -> None:
        """Nothing takes long."""

    def open(self, evaluation: Evaluation, spec: Spec) -> None:
        """Evaluate with this."""
        self._evaluation = evaluation
        self._seen = self._runs()

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""
        self._queue.extend(batch)

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Evaluate everything submitted; jobs on the same windows share their prefixes."""
        assert self._evaluation is not None, "open() comes first"
        groups, self._queue = in_groups(self._queue), []
        for fidelity, jobs in groups.items():
            started = time.thread_time()
            outcomes = evaluate_within(self._evaluation, [j.plan for j in jobs], fidelity)
            self._thread_seconds += time.thread_time() - started
            for job, outcome in zip(jobs, outcomes, strict=True):
                yield result(job, outcome)

    def counters(self) -> dict[str, float]:
        """Block runs and thread time since the last call."""
        now, before = self._runs(), self._seen
        seconds, self._seen, self._thread_seconds = self._thread_seconds, now, 0.0
        return {
            "block_runs": (now[0] - before[0]) / 2,
            "block_runs_naive": (now[1] - before[1]) / 2,
            "thread_seconds": seconds,
        }

    def close(self) -> None:
        """Nothing is held."""

    def _runs(self) -> tuple[int, int]:
        assert self._evaluation is not None, "open() comes first"
        telemetry = self._evaluation.supernet.telemetry
        return telemetry.runs, telemetry.naive_runs
