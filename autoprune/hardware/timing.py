"""The timing discipline: everything that is compared runs in one interleaved, shuffled loop."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from autoprune.errors import SettingError
from autoprune.hardware import sentinel

Call = Callable[[], None]
Clock = Callable[[Call, int], float]  # runs a call that many times; seconds in all
Progress = Callable[[int, int], None]  # rounds done, rounds in all

SHORTEST = 2e-3  # seconds that one sample lasts at least: allocation makes shorter ones jump
MOST_REPEATS = 1000
_SENTINEL = "\0sentinel"


@dataclass(frozen=True)
class Samples:
    """Seconds of one call, one per kept round. Items of one loop share their rounds: they can be paired."""

    seconds: tuple[float, ...]
    repeats: int = 1

    @property
    def median(self) -> float:
        """The estimate: the minimum is the worst one under load."""
        return float(np.median(self.seconds))

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

    @property
    def half_gap(self) -> float:
        """Distance in seconds between the medians of the even and of the odd samples."""
        if len(self.seconds) < 2:
            return 0.0
        return abs(float(np.median(self.seconds[::2])) - float(np.median(self.seconds[1::2])))

    @property
    def split_half(self) -> float:
        """`half_gap` relative to the median: the noise of a comparison of two such samples."""
        return self.half_gap / abs(self.median) if self.median else 0.0

    def per(self, count: int) -> Samples:
        """Seconds of one of `count` equal parts of a call."""
        return Samples(tuple(s / count for s in self.seconds), self.repeats)

    def minus(self, other: Samples) -> Samples:
        """Differences round by round, which slow drift leaves alone."""
        return Samples(tuple(a - b for a, b in zip(self.seconds, other.seconds, strict=True)), self.repeats)

    def over(self, other: Samples) -> Samples:
        """Ratios (no seconds) round by round."""
        return Samples(tuple(a / b for a, b in zip(self.seconds, other.seconds, strict=True)), self.repeats)


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

    Every sample follows one untimed call of the same item. Rounds with a slow sentinel are dropped for all
    items alike; raises MeasurementError when the machine is too busy, unless `allow_contended`.
    """
    clock = clock or clock_for(threads, device)
    work = {**items, _SENTINEL: sentinel.work(device)}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with torch_threads(threads), _collector_between_rounds() as collect:
        repeats = {name: _repeats(clock, call) for name, call in work.items()}
        for done, order in enumerate(orders(tuple(work), rounds, seed), 1):
            collect()
            for name in order:
                work[name]()
                seconds[name].append(clock(work[name], repeats[name]) / repeats[name])
            if progress:
                progress(done, rounds)
    kept = sentinel.Sentinel(tuple(seconds.pop(_SENTINEL))).kept(allow_contended)
    return {name: Samples(tuple(row[i] for i in kept), repeats[name]) for name, row in seconds.items()}


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


def _repeats(clock: Clock, call: Call) -> int:
    call()
    once = clock(call, 1)
    return min(MOST_REPEATS, max(1, math.ceil(SHORTEST / once))) if once > 0 else MOST_REPEATS


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
