"""Runs evaluations on Ray: workers hold a supernet each and take pieces of batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, StoppedError
from autoprune.executors.base import Spec, result
from autoprune.executors.cluster import Cluster
from autoprune.executors.pieces import cut
from autoprune.objective import Fidelity, Result
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation, Failure, Scores
    from autoprune.executors.worker import Scored

STUBBORN = 6  # workers lost in a row, beyond the retries of one piece: the fault is not a plan's


@dataclass(frozen=True)
class _Task:
    """A piece: some jobs on some of their windows, and how many workers were lost with it."""

    jobs: tuple[Job, ...]
    fidelity: Fidelity
    number: int  # in the order of the queue
    lost: int = 0


class Ray:
    """`workers` processes; a piece whose worker died is run `retries` times again before its plans count as failed.

    `address` attaches to a Ray that runs already (`auto`, or host:port); without it one is started here and stopped
    at the end. Scores do not depend on the number of workers.
    """

    def __init__(self, workers: int = 2, address: str | None = None, retries: int = 2) -> None:
        if workers < 1:
            raise SettingError(f"executor.workers={workers} is out of range; it must be at least 1")
        if retries < 0:
            raise SettingError(f"executor.retries={retries} is out of range; it must be at least 0")
        if find_spec("ray") is None:
            raise SettingError("executor=ray needs Ray, which is not installed: pip install autoprune[ray]")
        self.capacity = workers
        self._address, self._retries = address, retries
        self._cluster: Cluster | None = None
        self._spec: Spec | None = None
        self._queue: deque[_Task] = deque()
        self._idle: list[Any] = []
        self._running: dict[Any, tuple[Any, _Task | None]] = {}  # by Ray's reference; None: it is opening
        self._parts: dict[int, dict[tuple[int, int], Scores | Failure]] = {}  # by proposal, then windows
        self._expected: dict[int, int] = {}
        self._in_a_row = 0
        self._counters: dict[str, float] = {}
        self._times: list[tuple[int, Any, float]] = []  # a piece's number, its worker, its thread seconds
        self._pieces = 0

    def begin(self, threads: int) -> None:
        """Start Ray and the workers' processes in the background."""
        if self._cluster is None:
            self._cluster = Cluster(self.capacity, threads, self._address)

    def open(self, evaluation: Evaluation, spec: Spec) -> None:
        """Let every worker build the supernet that `spec` describes; those that hold another build it anew."""
        self.begin(int(spec.settings["threads"]))
        self._settle()
        self._spec, idle, self._idle = spec, self._idle, []
        for worker in idle:
            self._let_open(worker)

    def submit(self, batch: Sequence[Job]) -> None:
        """Cut a batch into pieces and queue them."""
        assert self._spec is not None, "open() comes first"
        groups: dict[Fidelity, list[Job]] = {}
        for job in batch:
            groups.setdefault(job.proposal.fidelity, []).append(job)
        for fidelity, jobs in groups.items():
            plans = [job.plan for job in jobs]
            for piece in cut(plans, fidelity.windows, self._spec.sequences, self.capacity):
                chosen = tuple(jobs[i] for i in piece.plans)
                self._queue.append(_Task(chosen, replace(fidelity, windows=piece.windows), self._pieces))
                self._pieces += 1
                for job in chosen:
                    self._expected[job.proposal.id] = self._expected.get(job.proposal.id, 0) + 1

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Results as their last pieces come in; ends early when `timeout` seconds bring none."""
        import ray

        while self._queue or any(task for _, task in self._running.values()):
            self._hand_out()
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=timeout)
            if not done:
                return
            yield from self._collect(done[0])

    def counters(self) -> dict[str, float]:
        """Block runs, thread time (of all workers, and of the busiest), pieces and lost workers since the last call."""
        counted, self._counters = self._counters, {}
        times, self._times = self._times, []
        busy: dict[Any, float] = {}
        for _, worker, seconds in times:
            busy[worker] = busy.get(worker, 0.0) + seconds
        longest = max(busy.values(), default=0.0)
        return {**counted, "thread_seconds": sum(busy.values()), "thread_seconds_longest": longest}

    def times(self) -> list[float]:
        """Thread seconds of every piece since `counters` was called, in the order in which workers take them."""
        return [seconds for _, _, seconds in sorted(self._times, key=lambda t: t[0])]

    def close(self) -> None:
        """End the workers, and Ray when it was started here."""
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None
        self._idle, self._running = [], {}
        self._queue.clear()

    def _settle(self) -> None:
        """Wait for workers that are still opening: calls of one batch are all answered by then."""
        while self._running:
            self._collect(next(iter(self._running)))

    def _hand_out(self) -> None:
        assert self._cluster is not None, "open() comes first"
        if not self._running and not self._idle:
            for worker in self._cluster.workers():
                self._let_open(worker)
        while self._queue and self._idle:
            worker, task = self._idle.pop(), self._queue.popleft()
            reference = worker.score.remote([job.plan for job in task.jobs], task.fidelity)
            self._running[reference] = (worker, task)

    def _let_open(self, worker: Any) -> None:
        self._running[worker.open.remote(self._spec)] = (worker, None)

    def _collect(self, reference: Any) -> list[Result]:
        """What a finished call brought: results that are now complete."""
        import ray
        from ray import exceptions

        worker, task = self._running.pop(reference)
        try:
            answer = ray.get(reference)
        except exceptions.RayTaskError as error:
            self._idle.append(worker)
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except exceptions.RayError as error:  # the worker, or its machine, is lost
            self._replace(worker, task, error)
            return self._bury(task) if task is not None else []
        self._idle.append(worker)
        if task is None:
            return []
        self._in_a_row = 0
        return self._take(worker, task, answer)

    def _take(self, worker: Any, task: _Task, scored: Scored) -> list[Result]:
        self._times.append((task.number, worker, scored.thread_seconds))
        self._count(block_runs=scored.runs / 2, block_runs_naive=scored.naive_runs / 2, pieces=1)
        found = (self._add(j, task.fidelity, o) for j, o in zip(task.jobs, scored.outcomes, strict=True))
        return [r for r in found if r is not None]

    def _add(self, job: Job, fidelity: Fidelity, outcome: Scores | Failure) -> Result | None:
        number = job.proposal.id
        parts = self._parts.setdefault(number, {})
        parts[fidelity.windows] = outcome
        if len(parts) < self._expected[number]:
            return None
        del self._parts[number], self._expected[number]
        return result(job, _joined([parts[windows] for windows in sorted(parts)]))

    def _replace(self, worker: Any, task: _Task | None, error: Exception) -> None:
        assert self._cluster is not None
        self._count(workers_lost=1)
        self._in_a_row += 1
        if task is None and "creation task" in str(error):
            raise SettingError(f"executor=ray: a worker cannot start: {_last(error)}")
        if self._in_a_row > self._retries + STUBBORN:
            raise StoppedError(f"executor=ray: {self._in_a_row} workers in a row have died ({_last(error)})")
        self._cluster.dismiss(worker)
        self._let_open(self._cluster.hire())

    def _bury(self, task: _Task) -> list[Result]:
        """Run a piece again whose worker died; at last plan by plan, so that only the plan at fault fails."""
        if task.lost < self._retries:
            self._queue.appendleft(replace(task, lost=task.lost + 1))
        elif len(task.jobs) > 1:
            self._queue.extendleft(replace(task, jobs=(job,)) for job in task.jobs)
        else:
            return self._fail(task)
        return []

    def _fail(self, task: _Task) -> list[Result]:
        from autoprune.evaluation import Failure

        (job,) = task.jobs
        found = self._add(job, task.fidelity, Failure(f"plan {job.plan.key}: its worker died every time"))
        return [found] if found is not None else []

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._counters[name] = self._counters.get(name, 0.0) + amount


def _last(error: Exception) -> str:
    """The last line of what Ray says: its own words come first, the cause at the end."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]


def _joined(parts: Sequence[Scores | Failure]) -> Scores | Failure:
    """One outcome from those of consecutive windows: the first failure, if there is one."""
    from autoprune.evaluation import Failure, summarise

    failed = next((p for p in parts if isinstance(p, Failure)), None)
    if failed is not None or len(parts) == 1:
        return failed or parts[0]
    whole = [p.per_window for p in parts if not isinstance(p, Failure)]
    return summarise({metric: [columns[metric] for columns in whole] for metric in whole[0]})
