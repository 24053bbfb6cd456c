"""Pieces of work on their way to workers, and what becomes of one whose worker is lost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from autoprune.executors.wire import packed_plans
from autoprune.objective import Fidelity
from autoprune.study import Job

LATE = 1  # how often a plan that took too long is tried again
SMALLER = 4  # a plan that took every worker with it is tried once more with micro-batches so much smaller


class Group(tuple[Job, ...]):
    """Jobs of one piece, or of several that differ in their windows only."""

    @cached_property
    def packed(self) -> bytes:
        """Their plans, on their way."""
        return packed_plans([job.plan for job in self])


@dataclass(frozen=True)
class Task:
    """Some jobs on some of their windows, and how many workers were lost with them."""

    jobs: Group
    fidelity: Fidelity
    number: int  # in the order of the queue
    lost: int = 0
    late: int = 0
    sequences: int | None = None  # windows in a micro-batch, where not as many as the settings say

    def alone(self) -> list[Task]:
        """One task a plan."""
        return [replace(self, jobs=Group((job,))) for job in self.jobs]


def after_death(task: Task, retries: int, sequences: int) -> list[Task]:
    """What to run when the worker of a task has died; nothing when its plan is to blame.

    The whole piece again, `retries` times; then plan by plan, so that only the plan at fault fails; at last with
    smaller micro-batches than of `sequences` windows, because what kills workers is mostly want of memory.
    """
    if task.lost < retries:
        return [replace(task, lost=task.lost + 1)]
    if len(task.jobs) > 1:
        return task.alone()
    if task.sequences is None and sequences > 1:
        return [replace(task, sequences=max(1, sequences // SMALLER))]
    return []


def after_limit(task: Task) -> list[Task]:
    """What to run when a task has taken too long: plan by plan, each once more; nothing when that was its last try."""
    if len(task.jobs) > 1:
        return task.alone()
    return [replace(task, late=task.late + 1)] if task.late < LATE else []


def in_groups(batch: Sequence[Job]) -> dict[Fidelity, list[Job]]:
    """Jobs by their windows."""
    groups: dict[Fidelity, list[Job]] = {}
    for job in batch:
        groups.setdefault(job.proposal.fidelity, []).append(job)
    return groups
