"""Outcomes of pieces of windows, joined to one result a proposal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoprune.executors.base import result
from autoprune.objective import Fidelity, Result
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Failure, Scores


class Joining:
    """Holds parts until they are whole."""

    def __init__(self) -> None:
        self._parts: dict[int, dict[tuple[int, int], Scores | Failure]] = {}  # by proposal, then windows
        self._expected: dict[int, int] = {}

    def expect(self, job: Job) -> None:
        """One part more will come of this job."""
        self._expected[job.proposal.id] = self._expected.get(job.proposal.id, 0) + 1

    def add(self, job: Job, fidelity: Fidelity, outcome: Scores | Failure) -> Result | None:
        """Take in a part; the result when it was the last one."""
        number = job.proposal.id
        parts = self._parts.setdefault(number, {})
        parts[fidelity.windows] = outcome
        if len(parts) < self._expected[number]:
            return None
        del self._parts[number], self._expected[number]
        return result(job, joined([parts[windows] for windows in sorted(parts)]))


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
