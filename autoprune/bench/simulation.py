"""Simulated workers on a simulated clock, behind the executor's contract: what a cluster does, in one process.

The clock runs on with whatever the driver really computes between two calls (thread time), so a driver that cannot
keep up leaves its workers idle here as it would there.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.objective import Proposal, Result, Status
from autoprune.study import Job


@dataclass(frozen=True)
class Conditions:
    """Seconds of an evaluation are drawn from `recorded`, or log-normal; then some take `slow` times as long.

    A share of `failures` of all attempts kills its worker at a random moment; another is there after `restart`
    seconds, and the evaluation runs again, at most `retries` times. `call`: what sending off and taking in an
    evaluation costs the driver beside what it computes here, in seconds.
    """

    workers: int
    seconds: float = 5.0
    spread: float = 0.2
    stragglers: float = 0.01
    slow: float = 4.0
    failures: float = 0.02
    restart: float = 5.0
    retries: int = 2
    call: float = 0.0007
    seed: int = 0
    recorded: tuple[float, ...] = ()

    def attempt(self, proposal: int, number: int) -> tuple[float, bool]:
        """How long an attempt takes until it ends or its worker dies, and whether it ends well."""
        rng = np.random.default_rng([self.seed, proposal, number])
        drawn = rng.standard_normal()
        if self.recorded:
            taken = self.recorded[int(rng.integers(len(self.recorded)))]
            taken *= self.seconds / float(np.mean(self.recorded))
        else:
            taken = self.seconds * float(np.exp(self.spread * drawn - self.spread**2 / 2))
        if rng.random() < self.stragglers:
            taken *= self.slow
        if rng.random() < self.failures:
            return taken * float(rng.random()), False
        return taken, True


@dataclass
class Clock:
    """Simulated seconds: of the whole run so far, worked for results, and worked in vain."""

    now: float = 0.0
    useful: float = 0.0
    lost: float = 0.0
    driver: float = 0.0  # thread seconds of the driver, really computed
    sent: float = 0.0  # when the last evaluation was first sent off: from then on workers run dry
    useful_sent: float = 0.0  # useful work up to then


@dataclass(frozen=True)
class _Attempt:
    job: Job
    number: int
    began: float
    well: bool


class Simulated:
    """`capacity` workers that each take the next evaluation when they are free and the driver is, too."""

    def __init__(self, conditions: Conditions, evaluate: Callable[[Proposal], Result]) -> None:
        self.capacity = conditions.workers
        self.clock = Clock()
        self._conditions, self._evaluate = conditions, evaluate
        self._queue: deque[tuple[Job, int]] = deque()
        self._free = conditions.workers
        self._events: list[tuple[float, int, _Attempt | None]] = []  # None: a worker is there again
        self._count = 0
        self._well = (
            0,
            0.0,
        )  # attempts in flight that will end well: how many, and the sum of their beginnings
        self._left = time.thread_time()

    def start(self) -> None:
        """What the driver computed so far does not count."""
        self._left = time.thread_time()

    def submit(self, batch: Sequence[Job]) -> None:
        """Take in a batch."""
        self._enter()
        self._queue.extend((job, 0) for job in batch)
        self._left = time.thread_time()

    def results(self, timeout: float | None = None) -> Iterator[Result]:
        """Results in the order in which the simulated workers bring them; ends when `timeout` seconds bring none."""
        self._enter()
        while self._queue or self._events:
            self._hand_out()
            if timeout is not None and self._events[0][0] > self.clock.now + timeout:
                self.clock.now += timeout
                break
            at, _, attempt = heapq.heappop(self._events)
            self.clock.now = max(self.clock.now, at)
            self._free += attempt is None or attempt.well
            result = self._ended(attempt, at) if attempt is not None else None
            if result is not None:
                self._left = time.thread_time()
                yield result
                self._enter()
        self._left = time.thread_time()

    def counters(self) -> dict[str, float]:
        """Nothing is run."""
        return {}

    def _enter(self) -> None:
        """The driver has computed something since it left."""
        taken = time.thread_time() - self._left
        self.clock.driver += taken
        self.clock.now += taken

    def _hand_out(self) -> None:
        while self._queue and self._free:
            job, number = self._queue.popleft()
            self._free -= 1
            self.clock.now += self._conditions.call
            taken, well = self._conditions.attempt(job.proposal.id, number)
            began = self.clock.now
            self._at(began + taken, _Attempt(job, number, began, well))
            self._count_well(int(well), began)
            if not number:
                self.clock.sent = began
                self.clock.useful_sent = self.clock.useful + self._well[0] * began - self._well[1]

    def _count_well(self, change: int, began: float) -> None:
        count, sums = self._well
        self._well = (count + change, sums + change * began)

    def _ended(self, attempt: _Attempt, at: float) -> Result | None:
        worked = at - attempt.began
        if attempt.well:
            self.clock.useful += worked
            self._count_well(-1, attempt.began)
            return self._evaluate(attempt.job.proposal)
        self.clock.lost += worked
        self._at(at + self._conditions.restart, None)
        if attempt.number < self._conditions.retries:
            self._queue.appendleft((attempt.job, attempt.number + 1))
            return None
        return Result(attempt.job.proposal, Status.FAILED, reason="its worker died every time")

    def _at(self, moment: float, attempt: _Attempt | None) -> None:
        self._count += 1
        heapq.heappush(self._events, (moment, self._count, attempt))
