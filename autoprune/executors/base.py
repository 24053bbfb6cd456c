"""What all executors share: what they are opened with, and how an outcome becomes a result."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from autoprune.objective import Result, Status
from autoprune.study import Job, SupernetSpec

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation, Failure, Scores


@dataclass(frozen=True)
class Spec:
    """What a worker builds its supernet from: plain data, and what must come out of it."""

    settings: Mapping[str, Any]  # the run's, resolved
    digests: Mapping[str, str]  # of model, corpus and ladders
    cache: str  # folder of the artifacts
    supernet: SupernetSpec | None = None  # None: the ladders that the settings stand for
    inputs: tuple[str, ...] = ()  # absolute paths in the settings: what is read beside the cache
    artifacts: tuple[str, ...] = ()  # folders below the cache
    versions: Mapping[str, str] = field(default_factory=dict)  # of the software that decides scores

    @property
    def sequences(self) -> int:
        """Windows in a micro-batch."""
        return int(self.settings["sequences"])


class Opened(Protocol):
    """An executor's whole life: the study sees it between `open` and `close`."""

    capacity: int

    def begin(self, threads: int) -> None:
        """Start what takes long and needs no model yet; may be left out."""

    def open(self, evaluation: Evaluation, spec: Spec) -> None:
        """Evaluate with this from now on: here with the evaluation, elsewhere with what the spec says."""

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""

    def results(self, timeout: float | None = None) -> Iterable[Result]:
        """Results of what was submitted, as they come; what is submitted meanwhile is answered here or by the next."""

    def counters(self) -> dict[str, float]:
        """Telemetry since the last call."""

    def close(self) -> None:
        """Let go of everything; may be called twice."""


def result(job: Job, outcome: Scores | Failure) -> Result:
    """What came of a job."""
    reason = getattr(outcome, "reason", None)
    if reason is not None:
        return Result(job.proposal, Status.FAILED, reason=reason)
    return Result(job.proposal, Status.OK, outcome.metrics, outcome.per_window, outcome.note)  # type: ignore[union-attr]
