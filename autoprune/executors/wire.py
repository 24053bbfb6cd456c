"""What goes to a worker and what comes back, as one lump of bytes each way.

Ray takes arguments apart: each plan passes through its own pickler, which is written in Python, and each array becomes
a buffer of its own. For a batch of 64 plans that was most of what a batch costs the run's own process.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.objective import Fidelity
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.evaluation import Failure, Scores


@dataclass(frozen=True)
class Asked:
    """A piece: plans, windows, and how many of these make a micro-batch, if not as many as usual."""

    plans: Sequence[Plan]
    fidelity: Fidelity
    sequences: int | None = None

    def packed(self) -> bytes:
        """For the way there; the sublayers alone, which plans share, take half the time of the plans."""
        fields = ([plan.sublayers for plan in self.plans], self.fidelity, self.sequences)
        return pickle.dumps(fields, protocol=5)

    @staticmethod
    def unpacked(lump: bytes) -> Asked:
        """Once there."""
        plans, fidelity, sequences = pickle.loads(lump)
        return Asked([Plan(sublayers) for sublayers in plans], fidelity, sequences)


@dataclass(frozen=True)
class Scored:
    """A piece's outcomes, and what they took."""

    outcomes: list[Scores | Failure]
    runs: int
    naive_runs: int
    thread_seconds: float

    def packed(self) -> bytes:
        """For the way back; the values of all plans that have the same metrics as one array a metric."""
        groups = [list(group) for _, group in groupby(self.outcomes, _layout)]
        fields = ([_columns(group) for group in groups], self.runs, self.naive_runs, self.thread_seconds)
        return pickle.dumps(fields, protocol=5)

    @staticmethod
    def unpacked(lump: bytes) -> Scored:
        """Back here."""
        groups, *telemetry = pickle.loads(lump)
        return Scored([outcome for group in groups for outcome in _outcomes(group)], *telemetry)


def _layout(outcome: Scores | Failure) -> Any:
    """Outcomes of one layout fit into arrays together; failures have none."""
    values = getattr(outcome, "per_window", None)
    return None if values is None else [(n, v.dtype.str, v.shape) for n, v in values.items()]


def _columns(group: Sequence[Any]) -> Any:
    if _layout(group[0]) is None:
        return list(group)
    values = {name: np.stack([s.per_window[name] for s in group]) for name in group[0].per_window}
    return values, [(s.metrics, s.note) for s in group]


def _outcomes(group: Any) -> Iterator[Scores | Failure]:
    from autoprune.evaluation import Scores

    if isinstance(group, list):
        yield from group
        return
    values, rest = group
    columns = list(values.items())
    for row, (metrics, note) in enumerate(rest):
        yield Scores(metrics, {name: column[row] for name, column in columns}, note)
