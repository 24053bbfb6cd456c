"""Runs evaluations on Ray: workers hold a supernet each and take pieces of batches."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from autoprune.errors import SettingError, StoppedError, nearest
from autoprune.executors.base import Spec
from autoprune.executors.cluster import Cluster
from autoprune.executors.joining import Joining
from autoprune.executors.offers import Demand, check_demand
from autoprune.executors.pieces import cut
from autoprune.executors.shipping import Listed, Parcel, listed, packed
from autoprune.executors.task import Group, Task, after_death, after_limit, in_groups
from autoprune.executors.watching import PULSE
from autoprune.executors.wire import Scored, asked
from autoprune.executors.worker import Lacks, Ready
from autoprune.objective import Result
from autoprune.study import Job

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation

STUBBORN = (
    6  # workers lost in a row, beyond the retries of one piece and all workers once: no plan is at fault
)
ARTIFACTS = ("auto", "shared", "ship")
FULL = ("ObjectStoreFullError", "OutOfDiskError")  # another worker would not help
WAITING = 30.0  # seconds without any worker after which a user is told


@dataclass(frozen=True)
class _Call:
    """What a worker was asked for: a task, or, without one, to open."""

    worker: Any
    task: Task | None
    due: float | None = None  # on the monotonic clock


class Ray:
    """`workers` processes, each with `cpus` CPUs (null: `threads`), `gpus` GPUs and named `resources` set aside.

    A piece whose worker died is run `retries` times again before its plans count as failed; one that takes more than
    `limit` seconds a plan loses its worker, and its plan fails when that happens again. `artifacts`: `shared` if all
    nodes see the files of this one, `ship` sends each node a copy, `auto` where a node does not see them. `address`
    attaches to a Ray that runs already (`auto`, or host:port); without it one is started here and stopped at the end.
    Scores do not depend on the number of workers. A worker has one piece at a time: what waits, waits here.
    """

    def __init__(
        self,
        workers: int = 2,
        address: str | None = None,
        retries: int = 2,
        cpus: float | None = None,
        gpus: float = 0,
        resources: Mapping[str, float] | None = None,
        limit: float | None = None,
        artifacts: str = "auto",
    ) -> None:
        check_demand(workers, cpus, gpus, resources)
        if retries < 0:
            raise SettingError(f"executor.retries={retries} is out of range; it must be at least 0")
        if limit is not None and not limit > 0:
            raise SettingError(
                f"executor.limit={limit} is out of range; it must be above 0, or null for none"
            )
        if artifacts not in ARTIFACTS:
            raise SettingError(f"executor.artifacts={artifacts} is unknown" + nearest(artifacts, ARTIFACTS))
        if find_spec("ray") is None:
            raise SettingError("executor=ray needs Ray, which is not installed: pip install autoprune[ray]")
        self.capacity = workers
        self.say: Callable[[str], None] = lambda text: None  # hears what a user should know
        self._address, self._retries, self._limit, self._artifacts = address, retries, limit, artifacts
        self._wanted = (cpus, gpus, dict(resources or {}))
        self._cluster: Cluster | None = None
        self._spec: Spec | None = None
        self._files: Listed = {}
        self._parcel: Parcel | None = None
        self._queue: deque[Task] = deque()
        self._idle: list[Any] = []
        self._running: dict[Any, _Call] = {}  # by Ray's reference
        self._joining = Joining()
        self._machines: set[str] = set()
        self._in_a_row, self._late, self._started, self._told = 0, 0, False, False
        self._since = 0.0  # when results were first waited for
        self._counters: dict[str, float] = {}
        self._times: list[tuple[int, Any, float]] = []  # a piece's number, its worker, its thread seconds
        self._pieces = 0

    def begin(self, threads: int) -> None:
        """Start Ray and the workers' processes in the background."""
        if self._cluster is None:
            cpus, gpus, resources = self._wanted
            demand = Demand(threads if cpus is None else cpus, gpus, resources)
            self._cluster = Cluster(self.capacity, threads, self._address, demand, self.say)

    def open(self, evaluation: Evaluation, spec: Spec) -> None:
        """Let every worker build the supernet that `spec` describes; those that hold another build it anew."""
        self.begin(int(spec.settings["threads"]))
        self._spec, self._files, self._parcel = spec, listed(spec), None
        here, self._idle, self._running = [*self._idle, *self._opening()], [], {}
        for worker in here:
            self._let_open(worker)

    def submit(self, batch: Sequence[Job]) -> None:
        """Cut a batch into pieces and queue them."""
        assert self._spec is not None, "open() comes first"
        for fidelity, jobs in in_groups(batch).items():
            plans, groups = [job.plan for job in jobs], dict[tuple[int, ...], Group]()
            for piece in cut(plans, fidelity.windows, self._spec.sequences, self.capacity):
                if (chosen := groups.get(piece.plans)) is None:
                    chosen = groups[piece.plans] = Group(jobs[i] for i in piece.plans)
                self._queue.append(Task(chosen, replace(fidelity, windows=piece.windows), self._pieces))
                self._pieces += 1
                for job in chosen:
                    self._joining.expect(job)

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Results as their last pieces come in; ends early when `timeout` seconds bring none."""
        import ray

        self._since = self._since or time.monotonic()
        end = None if timeout is None else time.monotonic() + timeout
        while self._queue or any(call.task for call in self._running.values()):
            self._hand_out()
            done, _ = ray.wait(list(self._running), num_returns=1, timeout=self._patience(end))
            found = self._collect(done[0]) if done else self._enforce()
            if not done and end is not None and time.monotonic() >= end:
                return
            if found and timeout is not None:
                end = time.monotonic() + timeout
            yield from found

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
        self._idle, self._running, self._parcel = [], {}, None
        if self._cluster is not None:
            self._cluster.stop()
            self._cluster = None
        self._queue.clear()

    def _opening(self) -> list[Any]:
        """Workers that have not answered yet: what they are asked next, they do after that."""
        return [call.worker for call in self._running.values()]

    def _patience(self, end: float | None) -> float:
        """Seconds to wait for an answer: until the caller, or the limit of a piece, or the user wants to know more."""
        marks = [call.due for call in self._running.values() if call.due is not None]
        marks += [end] if end is not None else []
        now = time.monotonic()
        marks += [] if self._started or self._told else [self._since + WAITING]
        marks.append(now + PULSE)
        return max(0.0, min(marks) - now)

    def _hand_out(self) -> None:
        assert self._cluster is not None, "open() comes first"
        self._cluster.check()
        if not self._running and not self._idle:
            for worker in self._cluster.workers():
                self._let_open(worker)
        while self._queue and self._idle:
            worker, task = self._idle.pop(), self._queue.popleft()
            due = None if self._limit is None else time.monotonic() + self._limit * len(task.jobs)
            reference = worker.score.remote(asked(task.jobs.packed, task.fidelity, task.sequences))
            self._running[reference] = _Call(worker, task, due)

    def _let_open(self, worker: Any) -> None:
        files = None if self._parcel is not None else self._files
        if self._artifacts == "ship" and self._parcel is None:
            files, self._parcel = None, self._packed()
        self._running[worker.open.remote(self._spec, files, self._parcel)] = _Call(worker, None)

    def _packed(self) -> Parcel:
        assert self._cluster is not None
        return packed(self._files, self._cluster.put)

    def _collect(self, reference: Any) -> list[Result]:
        """What a finished call brought: results that are now complete."""
        import ray
        from ray import exceptions

        call = self._running.pop(reference)
        try:
            answer = ray.get(reference)
        except exceptions.RayTaskError as error:
            self._idle.append(call.worker)
            if isinstance(error.cause, Exception):
                raise error.cause from error
            raise
        except exceptions.RayError as error:  # the worker, or its machine, is lost
            if type(error).__name__ in FULL:
                raise StoppedError(f"executor=ray: Ray has no room for results: {_last(error)}") from error
            self._replace(call, error)
            return self._bury(call.task) if call.task is not None else []
        if isinstance(answer, Lacks):
            self._send_files(call.worker, answer)
            return []
        self._idle.append(call.worker)
        return self._take(call, Scored.unpacked(answer) if isinstance(answer, bytes) else answer)

    def _take(self, call: _Call, answer: Scored | Ready) -> list[Result]:
        self._started = True
        if isinstance(answer, Ready) or call.task is None:
            self._met(answer)
            return []
        task, self._in_a_row, self._late = call.task, 0, 0
        self._times.append((task.number, call.worker, answer.thread_seconds))
        self._count(block_runs=answer.runs / 2, block_runs_naive=answer.naive_runs / 2, pieces=1)
        return self._joining.add(task.jobs, task.fidelity, answer)

    def _met(self, answer: Any) -> None:
        """Tell the user when workers are of different kinds."""
        before = len(self._machines)
        self._machines.add(answer.machine)
        if before == 1 and len(self._machines) == 2:
            kinds = ", ".join(sorted(self._machines))
            self.say(f"workers run on different machines ({kinds}): scores may differ in their last bits")

    def _send_files(self, worker: Any, answer: Lacks) -> None:
        """Give a worker the files that its node does not see."""
        if self._artifacts == "shared":
            raise SettingError(
                f"executor.artifacts=shared: node {answer.node} does not see {answer.file}; allowed: auto, ship"
            )
        if self._parcel is None:
            self.say(f"node {answer.node} does not see {answer.file}: sending it a copy")
            self._parcel = self._packed()
        self._let_open(worker)

    def _replace(self, call: _Call, error: Exception) -> None:
        """Hire another worker for one that is lost."""
        assert self._cluster is not None
        self._count(workers_lost=1)
        self._in_a_row += 1
        if call.task is None and "creation task" in str(error):
            raise SettingError(f"executor=ray: a worker cannot start: {_last(error)}")
        if self._in_a_row > self._retries + STUBBORN + self.capacity:
            raise StoppedError(f"executor=ray: {self._in_a_row} workers in a row have died ({_last(error)})")
        self._cluster.dismiss(call.worker)
        self._let_open(self._cluster.hire())

    def _bury(self, task: Task) -> list[Result]:
        """Queue again what a lost worker had, or fail the plan that is to blame."""
        assert self._spec is not None
        again = after_death(task, self._retries, self._spec.sequences)
        self._queue.extendleft(reversed(again))
        return [] if again else self._fail(task, "its worker died every time")

    def _enforce(self) -> list[Result]:
        """End workers whose pieces are overdue; say so when no worker has started for long."""
        assert self._cluster is not None
        now, found = time.monotonic(), []
        overdue = {r: c for r, c in self._running.items() if c.due is not None and c.due <= now}
        for reference, call in overdue.items():
            del self._running[reference]
            self._count(workers_late=1)
            self._late += 1
            if self._late > STUBBORN + self.capacity:
                raise StoppedError(
                    f"executor.limit={self._limit:g}: {self._late} evaluations in a row took longer; set a higher one"
                )
            self._cluster.dismiss(call.worker)
            self._let_open(self._cluster.hire())
            assert call.task is not None
            again = after_limit(call.task)
            self._queue.extendleft(reversed(again))
            found += (
                []
                if again
                else self._fail(call.task, f"it took longer than executor.limit={self._limit:g} s")
            )
        if not overdue and not self._started and not self._told and now >= self._since + WAITING:
            self._told = True
            self.say(f"no worker has started for {WAITING:.0f} s: is everything taken that Ray has?")
        return found

    def _fail(self, task: Task, why: str) -> list[Result]:
        from autoprune.evaluation import Failure

        failed = Failure(f"plan {task.jobs[0].plan.key}: {why}")
        return self._joining.add(task.jobs, task.fidelity, Scored([failed], 0, 0, 0.0))

    def _count(self, **amounts: float) -> None:
        for name, amount in amounts.items():
            self._counters[name] = self._counters.get(name, 0.0) + amount


def _last(error: Exception) -> str:
    """The last line of what Ray says: its own words come first, the cause at the end."""
    return ([line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__])[-1]
