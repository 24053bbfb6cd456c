"""Samples that other programs interrupted: the caches they leave behind slow even a processor-time clock."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from autoprune.errors import MeasurementError

LEAST_PEACEFUL = 0.5  # share of rounds that an item must have been left in peace in
EARLY = 3  # rounds after which a loop that most turns were disturbed in is given up
RETRIES = 6  # further samples in a round while none was left in peace
COST = 0.5e-3  # seconds that the caches take to fill again after another program ran: 0.5 to 1.5 ms were seen
TOLERATED = 0.02  # share of a sample that interruptions may take


@dataclass(frozen=True)
class Reading:
    """One sample: seconds a call by the loop's clock and on the wall, and how its thread had to make way."""

    seconds: float
    wall: float
    interrupted: int
    disturbed: bool


@dataclass(frozen=True)
class Turn:
    """What an item's samples in one round come to: the median of the least interrupted ones."""

    seconds: float
    wall: float
    peaceful: bool


def turn(sample: Callable[[], Reading], count: int) -> Turn:
    """Take `count` samples, and a few more while all were disturbed."""
    readings = [sample() for _ in range(count)]
    while all(r.disturbed for r in readings) and len(readings) < count + RETRIES:
        readings.append(sample())
    fewest = min(r.interrupted for r in readings)
    used = [r for r in readings if not r.disturbed] or [r for r in readings if r.interrupted == fewest]
    seconds, wall = (float(np.median([getattr(r, name) for r in used])) for name in ("seconds", "wall"))
    return Turn(seconds, wall, not used[0].disturbed)


def check(name: str, turns: Sequence[Turn]) -> None:
    """Raise MeasurementError when fewer than half of the turns were left in peace."""
    disturbed = sum(not t.peaceful for t in turns)
    if len(turns) - disturbed < LEAST_PEACEFUL * len(turns):
        raise MeasurementError(
            "measurement refused: the machine is busy (other programs interrupted "
            f"{name} in {disturbed} of {len(turns)} turns)"
        )


def disturbing(interrupted: int, seconds: float) -> bool:
    """Whether so many interruptions matter in a sample of that length."""
    return interrupted * COST > TOLERATED * seconds


def counter(threads: int, device: str = "cpu") -> Callable[[], int]:
    """Counts how often this thread (with several, this process) had to make way; 0 where the system does not tell."""
    if sys.platform != "linux" or torch.device(device).type != "cpu":
        return lambda: 0
    import resource

    whom = resource.RUSAGE_THREAD if threads == 1 else resource.RUSAGE_SELF
    return lambda: resource.getrusage(whom).ru_nivcsw
