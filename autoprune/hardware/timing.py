"""The timing discipline: everything that is compared runs in one interleaved, shuffled loop."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from autoprune.errors import MeasurementError, SettingError
from autoprune.hardware import interruptions, sentinel
from autoprune.hardware.interruptions import Reading, Turn, turn

Call = Callable[[], None]
Clock = Callable[[Call, int], float]  # runs a call that many times; seconds in all
Progress = Callable[[int, int], None]  # rounds done, rounds in all

SHORTEST = 2e-3  # seconds that one sample lasts at least: allocation makes shorter ones jump
PER_ROUND = 16e-3  # seconds of samples that an item gets in a round, at least one sample
MOST_REPEATS = 1000
SENTINEL = "sentinel"  # its item in a loop


@dataclass(frozen=True)
class Samples:
    """Seconds of one call, one per kept round; `rounds` says which, all when it is empty.

    Items of one loop share their rounds: they can be paired. `wall` has the seconds by the clock on the wall, `graph`
    says that CUDA graphs were replayed.
    """

    seconds: tuple[float, ...]
    repeats: int = 1
    rounds: tuple[int, ...] = ()
    wall: tuple[float, ...] = ()
    graph: bool = False

    @property
    def median(self) -> float:
        """The estimate: the minimum is the worst one under load."""
        return float(np.median(self.seconds))

    @property
    def wall_median(self) -> float:
        """The same by the clock on the wall; the estimate itself where that was not kept."""
        return float(np.median(self.wall)) if self.wall else self.median

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the median by order statistics; below six samples their range (promises less)."""
        ordered, n = sorted(self.seconds), len(self.seconds)
        rank, tail = 0, 0.5**n
        while 2 * tail <= 0.05:
            rank += 1
            tail += math.comb(n, rank) * 0.5**n
        low = max(rank - 1, 0)
        return ordered[low], ordered[n - 1 - low]

    def over(self, other: Samples) -> Samples:
        """Ratios (no seconds) round by round, over the rounds that both have; MeasurementError when there is none."""
        mine, theirs = self._by_round(), other._by_round()
        shared = [r for r in mine if r in theirs]
        if not shared:
            raise MeasurementError(
                "no round left both models in peace: the machine is too busy to compare them; stop other programs"
            )
        return Samples(tuple(mine[r] / theirs[r] for r in shared), self.repeats, tuple(shared))

    def shared(self, count: int) -> Samples:
        """Of one of so many things that a call does."""
        seconds, wall = (tuple(s / count for s in row) for row in (self.seconds, self.wall))
        return replace(self, seconds=seconds, wall=wall)

    def half(self, odd: bool) -> Samples:
        """Every second sample, to see the noise of what is made of them."""
        return Samples(self.seconds[int(odd) :: 2] or self.seconds, self.repeats)

    def _by_round(self) -> dict[int, float]:
        return dict(zip(self.rounds or range(len(self.seconds)), self.seconds, strict=True))


def clock_for(threads: int, device: str = "cpu") -> Clock:
    """Processor time where one thread does all the work (other programs do not count), else wall time."""
    kind = torch.device(device).type
    if kind == "cuda":
        return _cuda_clock(device)
    if kind != "cpu":
        raise SettingError(f"device={device} cannot be timed; allowed: cpu, cuda")
    return _clock(time.thread_time if threads == 1 else time.perf_counter)


def interleaved(
    items: Mapping[str, Call],
    rounds: int,
    seed: int,
    threads: int,
    progress: Progress | None = None,
    *,
    device: str = "cpu",
    allow_contended: bool = False,
    clock: Clock | None = None,
) -> dict[str, Samples]:
    """Time all items against each other: each once per round, in an order shuffled anew for every round.

    Every turn of an item starts with one untimed call. A round counts for an item when other programs left at
    least one of its samples in peace, and for all items when its sentinel was not slow; raises MeasurementError
    when the machine is too busy for that, unless `allow_contended`.
    """
    clock = clock or clock_for(threads, device)
    count = interruptions.counter(threads, device)
    work = {**items, SENTINEL: sentinel.work(device)}
    turns: dict[str, list[Turn]] = {name: [] for name in work}
    with torch_threads(threads), _collector_between_rounds() as collect:
        sizes = {name: _size(clock, call) for name, call in work.items()}
        for done, order in enumerate(orders(tuple(work), rounds, seed), 1):
            collect()
            for name in order:
                work[name]()
                turns[name].append(
                    turn(partial(_sample, clock, work[name], sizes[name][0], count), sizes[name][1])
                )
            if done == interruptions.EARLY and not allow_contended:
                interruptions.check("what is timed", [t for row in turns.values() for t in row])
            if progress:
                progress(done, rounds)
    kept = sentinel.Sentinel(tuple(t.seconds for t in turns.pop(SENTINEL))).kept(allow_contended)
    return {
        name: _samples(name, [(r, row[r]) for r in kept], sizes[name][0], allow_contended)
        for name, row in turns.items()
    }


def _samples(name: str, kept: Sequence[tuple[int, Turn]], repeats: int, allow_contended: bool) -> Samples:
    """The rounds in which an item was left in peace; raises MeasurementError when they are fewer than half."""
    if not allow_contended:
        interruptions.check(name, [t for _, t in kept])
    rounds, turns = zip(*([(r, t) for r, t in kept if t.peaceful] or kept), strict=True)
    return Samples(tuple(t.seconds for t in turns), repeats, rounds, tuple(t.wall for t in turns))


def _sample(clock: Clock, call: Call, repeats: int, count: Callable[[], int]) -> Reading:
    before, start = count(), time.perf_counter()
    seconds = clock(call, repeats)
    wall, interrupted = time.perf_counter() - start, count() - before
    disturbed = interruptions.disturbing(interrupted, seconds)
    return Reading(seconds / repeats, wall / repeats, interrupted, disturbed)


def orders(names: Sequence[str], rounds: int, seed: int) -> Iterator[tuple[str, ...]]:
    """The order of each round: a function of the names, the seed and the round alone."""
    for index in range(rounds):
        yield tuple(random.Random(f"{seed}:{index}").sample(names, len(names)))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Run with this many torch threads and restore the number afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _size(clock: Clock, call: Call) -> tuple[int, int]:
    """Calls in a sample, and samples in a round."""
    call()
    once = clock(call, 1)
    repeats = min(MOST_REPEATS, max(1, math.ceil(SHORTEST / once))) if once > 0 else MOST_REPEATS
    return repeats, max(1, math.ceil(PER_ROUND / (once * repeats))) if once > 0 else 1


def _clock(now: Callable[[], float]) -> Clock:
    def seconds(call: Call, repeats: int) -> float:
        start = now()
        for _ in range(repeats):
            call()
        return now() - start

    return seconds


def _cuda_clock(device: str) -> Clock:
    def seconds(call: Call, repeats: int) -> float:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        with torch.cuda.device(device):
            torch.cuda.synchronize()
            start.record()
            for _ in range(repeats):
                call()
            end.record()
            torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000

    return seconds


@contextmanager
def _collector_between_rounds() -> Iterator[Callable[[], int]]:
    """Keep the garbage collector out of the samples; yields what runs it between them."""
    enabled = gc.isenabled()
    gc.disable()
    gc.collect()
    gc.freeze()  # what is here now need not be walked again in every round
    try:
        yield gc.collect
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()
