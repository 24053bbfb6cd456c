"""Outcomes of pieces of windows, joined to one result a proposal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.executors.base import result
from autoprune.executors.wire import Scored
from autoprune.objective import Fidelity, Result
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Failure, Scores

Parts = list[tuple[Scored, int]]  # of a job, in the order of windows: what came back, and the row in it


class Joining:
    """Holds parts until they are whole."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[tuple[int, int], tuple[Scored, int]]] = {}  # by proposal, then windows
        self._expected: dict[int, int] = {}

    def expect(self, job: Job) -> None:
        """One part more will come of this job."""
        self._expected[job.proposal.id] = self._expected.get(job.proposal.id, 0) + 1

    def add(self, jobs: Sequence[Job], fidelity: Fidelity, scored: Scored) -> list[Result]:
        """Take in a part of each job; the results of those whose last part it was."""
        whole: list[tuple[Job, Parts]] = []
        for row, job in enumerate(jobs):
            number = job.proposal.id
            parts = self._parts.setdefault(number, {})
            parts[fidelity.windows] = (scored, row)
            if len(parts) == self._expected[number]:
                whole.append((job, [parts[windows] for windows in sorted(parts)]))
                del self._parts[number], self._expected[number]
        return [
            result(job, outcome)
            for _, alike in groupby(whole, _sources)
            for job, outcome in _joined(list(alike))
        ]


def _sources(whole: tuple[Job, Parts]) -> list[int]:
    return [id(scored) for scored, _ in whole[1]]


def _joined(whole: Sequence[tuple[Job, Parts]]) -> list[tuple[Job, Scores | Failure]]:
    """Jobs whose parts came together: at once where all have the same metrics, which saves most of the time."""
    sources = [scored.columns for scored, _ in whole[0][1]]
    names = sources[0]
    if (
        len(sources) == 1
        or names is None
        or not all(s is not None and s.keys() == names.keys() for s in sources)
    ):
        return [(job, joined([scored.outcomes[row] for scored, row in parts])) for job, parts in whole]
    rows = [[parts[i][1] for _, parts in whole] for i in range(len(sources))]
    columns = {
        name: np.concatenate([s[name][at] for s, at in zip(sources, rows, strict=True) if s], axis=1)
        for name in names
    }
    return list(zip((job for job, _ in whole), _rows(columns), strict=True))


def _rows(columns: Mapping[str, Any]) -> Iterator[Scores]:
    """Of [plans, windows] each row's."""
    from autoprune.classified import COLUMNS
    from autoprune.evaluation import scores_of

    plain = {metric: values.tolist() for metric, values in columns.items() if metric not in COLUMNS}
    for row in range(len(next(iter(columns.values())))):
        yield scores_of({m: v[row] for m, v in columns.items()}, {m: v[row] for m, v in plain.items()})


def joined(parts: Sequence[Scores | Failure]) -> Scores | Failure:
    """One outcome from those of consecutive windows: the first failure, if there is one."""
    from dataclasses import replace

    from autoprune.evaluation import Failure, summarise

    failed = next((p for p in parts if isinstance(p, Failure)), None)
    if failed is not None or len(parts) == 1:
        return failed or parts[0]
    good = [p for p in parts if not isinstance(p, Failure)]
    whole = summarise({metric: [p.per_window[metric] for p in good] for metric in good[0].per_window})
    notes = dict.fromkeys(p.note for p in good if p.note)
    return replace(whole, note="; ".join(notes)) if notes else whole
