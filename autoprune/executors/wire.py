"""What goes to a worker and what comes back, as one lump of bytes each way: JSON, and arrays as they lie in memory.

Ray takes arguments apart: each plan passes through its own pickler, which is written in Python, and each array becomes
a buffer of its own. For a batch of 64 plans that was most of what a batch costs the run's own process.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.objective import Fidelity, Split
from autoprune.space import Plan, SublayerPlan

if TYPE_CHECKING:
    from autoprune.evaluation import Failure, Scores

LINE = b"\n"  # there is none in our JSON
Columns = Mapping[str, Any]  # by metric: arrays of [plans, windows]
SIZE = 8  # bytes: of the number before the JSON, and what arrays are aligned to


@dataclass(frozen=True)
class Asked:
    """A piece: plans, windows, and how many of these make a micro-batch, if not as many as usual."""

    plans: Sequence[Plan]
    fidelity: Fidelity
    sequences: int | None = None

    def packed(self) -> bytes:
        """For the way there."""
        return asked(packed_plans(self.plans), self.fidelity, self.sequences)

    @staticmethod
    def unpacked(lump: bytes) -> Asked:
        """Once there."""
        windows, _, packed = lump.partition(LINE)
        (split, first, last), sequences = json.loads(windows)
        sublayers, places = json.loads(packed)
        distinct = [SublayerPlan(kind, tuple((n, v) for n, v in s)) for kind, s in sublayers]
        plans = [Plan(tuple(distinct[index] for index in plan)) for plan in places]
        return Asked(plans, Fidelity(Split(split), (first, last)), sequences)


def asked(plans: bytes, fidelity: Fidelity, sequences: int | None) -> bytes:
    """A piece, from its plans as `packed_plans` gives them."""
    windows = ((fidelity.split.value, *fidelity.windows), sequences)
    return json.dumps(windows).encode() + LINE + plans


def packed_plans(plans: Sequence[Plan]) -> bytes:
    """What pieces of the same plans have in common; sublayers, which plans share, are sent once."""
    rows = [list(map(id, plan.sublayers)) for plan in plans]
    distinct: dict[int, SublayerPlan] = {}
    for row, plan in zip(rows, plans, strict=True):
        distinct.update(zip(row, plan.sublayers, strict=True))
    place = dict(zip(distinct, range(len(distinct)), strict=True))
    sublayers = [(s.kind, s.settings) for s in distinct.values()]
    return json.dumps((sublayers, [list(map(place.__getitem__, row)) for row in rows])).encode()


class Scored:
    """A piece's outcomes, and what they took."""

    def __init__(
        self, outcomes: Sequence[Scores | Failure], runs: int, naive_runs: int, thread_seconds: float
    ) -> None:
        self.runs, self.naive_runs, self.thread_seconds = runs, naive_runs, thread_seconds
        self.columns: Columns | None = (
            None  # values of all outcomes, where all have the same metrics and no note
        )
        self._groups: list[tuple[Columns | None, Sequence[Any]]] = [(None, outcomes)] if outcomes else []

    @cached_property
    def outcomes(self) -> list[Scores | Failure]:
        """One a plan."""
        return [outcome for columns, rest in self._groups for outcome in _outcomes(columns, rest)]

    def packed(self) -> bytes:
        """For the way back; the values of all plans that have the same metrics as one array a metric."""
        groups = [_columns(list(group)) for _, group in groupby(self.outcomes, _layout)]
        telemetry = (self.runs, self.naive_runs, self.thread_seconds)
        header = json.dumps(([told for told, _ in groups], telemetry), default=float).encode()
        header += b" " * (-len(header) % SIZE)
        return b"".join(
            [len(header).to_bytes(SIZE, "big"), header, *(part for _, data in groups for part in data)]
        )

    @staticmethod
    def unpacked(lump: bytes) -> Scored:
        """Back here; outcomes are made when they are asked for, because pieces of windows are joined first."""
        at = SIZE + int.from_bytes(lump[:SIZE], "big")
        groups, telemetry = json.loads(lump[SIZE:at])
        found = Scored([], *telemetry)
        for group in groups:
            columns = {}
            for name, kind, shape in group["columns"]:
                array = np.frombuffer(lump, kind, prod(shape), at)
                columns[name], at = array.reshape(shape), at + array.nbytes
            found._groups.append((columns, group["rest"]))
        if len(groups) == 1 and columns and not any(note for _, note in groups[0]["rest"]):
            found.columns = columns
        return found


def _layout(outcome: Scores | Failure) -> Any:
    """Outcomes of one layout fit into arrays together; failures have none."""
    values = getattr(outcome, "per_window", None)
    return None if values is None else [(n, v.dtype.str, v.shape) for n, v in values.items()]


def _columns(group: Sequence[Any]) -> tuple[dict[str, Any], list[bytes]]:
    """What JSON holds of outcomes of one layout, and the bytes of their arrays."""
    if _layout(group[0]) is None:
        return {"columns": [], "rest": [failure.reason for failure in group]}, []
    arrays = {name: np.stack([s.per_window[name] for s in group]) for name in group[0].per_window}
    told = [(name, array.dtype.str, array.shape) for name, array in arrays.items()]
    rest = [(dict(s.metrics), s.note) for s in group]
    return {"columns": told, "rest": rest}, [array.tobytes() for array in arrays.values()]


def _outcomes(columns: Columns | None, rest: Sequence[Any]) -> Iterator[Scores | Failure]:
    from autoprune.evaluation import Failure, Scores

    if columns is None:  # they have not travelled
        yield from rest
        return
    for row, told in enumerate(rest):
        if isinstance(told, str):
            yield Failure(told)
        else:
            metrics, note = told
            yield Scores(metrics, {name: column[row] for name, column in columns.items()}, note)
