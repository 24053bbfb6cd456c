"""What runs in a worker's process: a supernet built from a spec, and the scoring of pieces."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoprune.executors.base import Spec
from autoprune.objective import Fidelity
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation, Failure, Scores


@dataclass(frozen=True)
class Scored:
    """A piece's outcomes, and what they took."""

    outcomes: list[Scores | Failure]
    runs: int
    naive_runs: int
    thread_seconds: float


class Worker:
    """Holds one supernet; made without one, because loading the libraries takes as long as building it."""

    def __init__(self) -> None:
        import autoprune.run.remote

        self._build = autoprune.run.remote.evaluation
        self._evaluation: Evaluation | None = None

    def open(self, spec: Spec) -> int:
        """Build the supernet; raises LedgerError when model, corpus or ladders are not those of the spec."""
        os.environ["AUTOPRUNE_CACHE"] = spec.cache
        self._evaluation = self._build(spec)
        return os.getpid()

    def score(self, plans: Sequence[Plan], fidelity: Fidelity) -> Scored:
        """Evaluate some plans on some windows."""
        assert self._evaluation is not None, "open() comes first"
        telemetry = self._evaluation.supernet.telemetry
        runs, naive, started = telemetry.runs, telemetry.naive_runs, time.thread_time()
        outcomes = self._evaluation.evaluate(plans, fidelity)
        seconds = time.thread_time() - started
        return Scored(outcomes, telemetry.runs - runs, telemetry.naive_runs - naive, seconds)
