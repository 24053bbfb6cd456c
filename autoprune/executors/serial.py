"""Runs evaluations in this process, one thread."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from autoprune.objective import Fidelity, Result, Status
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation, Scores
    from autoprune.evaluation import Failure as EvaluationFailure


class Serial:
    """Evaluates each batch in one supernet pass per fidelity."""

    capacity = 1

    def __init__(self, evaluation: Evaluation) -> None:
        self._evaluation = evaluation
        self._queue: list[Job] = []
        self._seen = (0, 0)

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""
        self._queue.extend(batch)

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Evaluate everything submitted; jobs on the same windows share their prefixes."""
        groups: dict[Fidelity, list[Job]] = {}
        for job in self._queue:
            groups.setdefault(job.proposal.fidelity, []).append(job)
        self._queue = []
        for fidelity, jobs in groups.items():
            outcomes = self._evaluation.evaluate([j.plan for j in jobs], fidelity)
            for job, outcome in zip(jobs, outcomes, strict=True):
                yield _result(job, outcome)

    def counters(self) -> dict[str, float]:
        """Sublayer runs since the last call."""
        telemetry = self._evaluation.supernet.telemetry
        now = (telemetry.runs, telemetry.naive_runs)
        runs, naive = now[0] - self._seen[0], now[1] - self._seen[1]
        self._seen = now
        return {"block_runs": runs / 2, "block_runs_naive": naive / 2}


def _result(job: Job, outcome: Scores | EvaluationFailure) -> Result:
    reason = getattr(outcome, "reason", None)
    if reason is not None:
        return Result(job.proposal, Status.FAILED, reason=reason)
    return Result(job.proposal, Status.OK, outcome.metrics, outcome.per_window)  # type: ignore[union-attr]
