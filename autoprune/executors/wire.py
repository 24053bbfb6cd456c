"""What goes to a worker and what comes back, as one lump of bytes each way: JSON, and arrays behind it.

Ray takes arguments apart: each plan passes through its own pickler, which is written in Python, and each array becomes
a buffer of its own. For a batch of 64 plans that was most of what a batch costs the run's own process.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.objective import Array, Fidelity, Split
from autoprune.space import Plan, SublayerPlan

if TYPE_CHECKING:
    from autoprune.evaluation import Failure, Scores

LENGTH = 8  # bytes that say how long the JSON is


@dataclass(frozen=True)
class Asked:
    """A piece: plans, windows, and how many of these make a micro-batch, if not as many as usual."""

    plans: Sequence[Plan]
    fidelity: Fidelity
    sequences: int | None = None

    def packed(self) -> bytes:
        """For the way there; a sublayer that plans share goes once."""
        places: dict[int, int] = {}
        shared: list[SublayerPlan] = []
        rows: list[list[int]] = []
        for plan in self.plans:
            rows.append(row := [])
            for sublayer in plan.sublayers:
                if (place := places.setdefault(id(sublayer), len(shared))) == len(shared):
                    shared.append(sublayer)
                row.append(place)
        sublayers = [(s.kind, s.settings) for s in shared]
        fields = (sublayers, rows, self.fidelity.split.value, self.fidelity.windows, self.sequences)
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def unpacked(lump: bytes) -> Asked:
        """Once there."""
        sublayers, rows, split, (start, stop), sequences = json.loads(lump)
        known = [SublayerPlan(kind, tuple((name, value) for name, value in own)) for kind, own in sublayers]
        plans = [Plan(tuple(known[place] for place in row)) for row in rows]
        return Asked(plans, Fidelity(Split(split), (start, stop)), sequences)


@dataclass(frozen=True)
class Scored:
    """A piece's outcomes, and what they took."""

    outcomes: list[Scores | Failure]
    runs: int
    naive_runs: int
    thread_seconds: float

    def packed(self) -> bytes:
        """For the way back; the values of all plans that have the same metrics as one array a metric."""
        arrays: list[Array] = []
        groups = [_told(list(group), arrays) for _, group in groupby(self.outcomes, _layout)]
        fields = (groups, self.runs, self.naive_runs, self.thread_seconds)
        text = json.dumps(fields, separators=(",", ":")).encode()
        return b"".join([len(text).to_bytes(LENGTH, "little"), text, *(a.tobytes() for a in arrays)])

    @staticmethod
    def unpacked(lump: bytes) -> Scored:
        """Back here."""
        end = LENGTH + int.from_bytes(lump[:LENGTH], "little")
        groups, *telemetry = json.loads(lump[LENGTH:end])
        return Scored(list(_outcomes(groups, lump, end)), *telemetry)


def _layout(outcome: Scores | Failure) -> Any:
    """Outcomes of one layout fit into arrays together; failures have none."""
    values = getattr(outcome, "per_window", None)
    return None if values is None else [(n, v.dtype.str, v.shape) for n, v in values.items()]


def _told(group: Sequence[Any], arrays: list[Array]) -> Any:
    """Reasons of failures, or what is said of scores; their values, [plans, windows] a metric, go to `arrays`."""
    if (layout := _layout(group[0])) is None:
        return [failure.reason for failure in group], None
    arrays += [np.stack([s.per_window[name] for s in group]) for name in group[0].per_window]
    return [(dict(s.metrics), s.note) for s in group], layout


def _outcomes(groups: Any, lump: bytes, at: int) -> Iterator[Scores | Failure]:
    """In their order; `at`: where the arrays begin."""
    from autoprune.evaluation import Failure, Scores

    for rows, layout in groups:
        if layout is None:
            yield from map(Failure, rows)
            continue
        columns = []
        for name, dtype, shape in layout:
            count = len(rows) * math.prod(shape)
            values = np.frombuffer(lump, dtype, count, at).reshape(len(rows), *shape).copy()
            columns.append((name, values))
            at += values.nbytes
        for row, (metrics, note) in enumerate(rows):
            yield Scores(metrics, {name: values[row] for name, values in columns}, note)
