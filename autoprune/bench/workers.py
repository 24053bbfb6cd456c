"""`autoprune bench workers`: what two workers gain over one, and what they lose.

The same batches (generations of nsga2 and of evopress, the latter with their later stages) are evaluated in this
process and by one Ray worker or two, batch by batch in turns. Times are processor seconds of the evaluating thread, so
that a busy machine slows all of them alike. *Efficiency* is the serial thread time over workers x makespan. The
makespan of a batch is what equally fast, undisturbed workers would take for the measured pieces, each taking the next
piece when it is free; batches follow each other, so an idle worker at the end of a batch counts. *As it ran* takes the
thread time of each batch's busiest worker instead. *Overhead* is what a batch costs the run's own process: thread time
of cutting it, handing pieces out and putting results together, median of the batches. *Block runs* are relative to the
uncut batches. Both sides return memory to the system as seldom as workers do. *Restart* is wall time from `autoprune
resume` of a run that was killed with SIGKILL to its first new row in the ledger.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from autoprune.bench import processes
from autoprune.bench.crash import progress
from autoprune.bench.sharing import searcher_of
from autoprune.bench.table import parser, publish
from autoprune.executors.base import Opened
from autoprune.executors.cluster import ALLOCATOR
from autoprune.executors.ray import Ray
from autoprune.executors.serial import Serial
from autoprune.objective import Objective, Result
from autoprune.run.parts import Parts, objectives, open_parts, search_evaluators
from autoprune.run.remote import spec_of
from autoprune.space import Space
from autoprune.study import Job

BATCHES = {"nsga2": 4, "evopress": 9}  # two or more generations; an evopress generation has three stages
PATIENCE = 600.0  # seconds


@dataclass(frozen=True)
class Made:
    """What an executor made of a method's batches."""

    thread: float
    makespan: float  # of pieces as workers take them, by thread time
    busiest: float  # thread time of each batch's busiest worker
    runs: float
    results: list[dict[int, Result]]
    overhead: list[float]  # thread time of the run's own process, of each batch


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    _share_allocator(args)
    from autoprune.config import compose
    from autoprune.progress import Progress

    settings = [f"model={options.model}", f"data={options.data}", "latency.mode=off", "quiet=true"]
    with Progress(quiet=True) as quiet:
        parts = open_parts(compose(settings), quiet)
    lines = [
        "| batches | executor | plans | efficiency | as it ran | overhead, ms | block runs | same bits |",
        "|" + "---|" * 8,
    ]
    for method in options.methods.split(","):
        lines += _compared(parts, method)
    restarts = [f"{name} {_restart([*settings, f'executor={name}']):.1f} s" for name in ("serial", "ray")]
    load = os.getloadavg()[0]
    table = "\n".join(
        [*lines, "", f"Restart: {', '.join(restarts)} (load average {load:.1f}, {os.cpu_count()} cores)."]
    )
    publish("workers", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("workers", __doc__)
    found.add_argument("--methods", default=",".join(BATCHES), help="of the batches")
    return found.parse_args(list(args))


def _share_allocator(args: Sequence[str]) -> None:
    """Start again with the memory thresholds of workers, which are read when a process starts."""
    if not ALLOCATOR.items() <= os.environ.items():
        command = [sys.executable, "-m", "autoprune", "bench", "workers", *args]
        os.execve(sys.executable, command, {**os.environ, **ALLOCATOR})


def _compared(parts: Parts, method: str) -> list[str]:
    """One line per number of workers."""
    space = parts.space(None)
    wanted = objectives(parts.cfg, space, parts.evaluators)
    batches = _batches(parts, space, wanted, method)
    return [_line(method, batches, count, *_side_by_side(parts, wanted, batches, count)) for count in (1, 2)]


def _side_by_side(
    parts: Parts, wanted: Sequence[Objective], batches: Sequence[Sequence[Job]], workers: int
) -> tuple[Made, Made]:
    """Each batch here and on Ray, one right after the other: what else the machine does slows both."""
    executors: tuple[Opened, Opened] = (Serial(), Ray(workers))
    parted: list[list[Made]] = [[], []]
    for executor in executors:
        executor.open(parts.evaluation(search_evaluators(parts, wanted)), spec_of(parts))
        _made(executor, batches[0], workers)  # teachers are read, workers have started
    for batch in batches:
        for executor, made in zip(executors, parted, strict=True):
            made.append(_made(executor, batch, workers))
    for executor in executors:
        executor.close()
    return _sum(parted[0]), _sum(parted[1])


def _line(method: str, batches: Sequence[Sequence[Job]], count: int, serial: Made, made: Made) -> str:
    cells = [
        *(method, f"ray, {count} worker{'s' * (count > 1)}", str(sum(map(len, batches)))),
        *(f"{serial.thread / (count * made.makespan):.3f}", f"{serial.thread / (count * made.busiest):.3f}"),
        f"{1000 * median(made.overhead):.1f}",
        *(f"{made.runs / serial.runs:.3f}", "yes" if _same(made.results, serial.results) else "NO"),
    ]
    return f"| {' | '.join(cells)} |"


def _batches(parts: Parts, space: Space, wanted: Sequence[Objective], method: str) -> list[list[Job]]:
    """What a method asks for one after the other; the first generation, which has no parents, is left out."""
    searcher, executor = searcher_of(parts, space, method), Serial()
    executor.open(parts.evaluation(search_evaluators(parts, wanted)), spec_of(parts))
    found: list[list[Job]] = []
    while len(found) < BATCHES[method]:
        jobs = [Job(p, space.decode(p.candidate)) for p in searcher.ask(searcher.batch)]
        executor.submit(jobs)
        done = {r.proposal.id: r for r in executor.results()}
        costs = {j.proposal.id: dict(space.cost(j.proposal.candidate)) for j in jobs}
        told = [done[j.proposal.id] for j in jobs]
        searcher.tell([Result(r.proposal, r.status, {**costs[r.proposal.id], **r.metrics}) for r in told])
        found.append(jobs)
    return found[len(found) // 3 :]


def _made(executor: Opened, batch: Sequence[Job], workers: int) -> Made:
    """Evaluate a batch."""
    started = time.thread_time()
    executor.submit(batch)
    results = {r.proposal.id: r for r in executor.results()}
    overhead = time.thread_time() - started
    pieces = executor.times() if isinstance(executor, Ray) else []
    counted = executor.counters()
    thread = counted["thread_seconds"]
    busiest = counted.get("thread_seconds_longest", thread)
    return Made(
        thread, _end(pieces or [thread], workers), busiest, counted["block_runs"], [results], [overhead]
    )


def _sum(parts: Sequence[Made]) -> Made:
    """Batches one after the other."""
    return Made(
        thread=sum(p.thread for p in parts),
        makespan=sum(p.makespan for p in parts),
        busiest=sum(p.busiest for p in parts),
        runs=sum(p.runs for p in parts),
        results=[batch for p in parts for batch in p.results],
        overhead=[seconds for p in parts for seconds in p.overhead],
    )


def _end(pieces: Sequence[float], workers: int) -> float:
    """When the last worker is done, each taking the next piece when it is free."""
    free = [0.0] * workers
    for seconds in pieces:
        free[free.index(min(free))] += seconds
    return max(free)


def _same(ours: Sequence[dict[int, Result]], theirs: Sequence[dict[int, Result]]) -> bool:
    """Whether metrics and values per window are equal to the last bit."""
    return [_bits(batch) for batch in ours] == [_bits(batch) for batch in theirs]


def _bits(batch: dict[int, Result]) -> dict[int, object]:
    return {
        number: (r.status, dict(r.metrics), {name: v.tobytes() for name, v in r.per_window.items()})
        for number, r in batch.items()
    }


def _restart(settings: Sequence[str]) -> float:
    """Seconds from `autoprune resume` of a killed run to its first new row."""
    with tempfile.TemporaryDirectory(prefix="autoprune-restart-") as work:
        out = Path(work) / "run"
        with (Path(work) / "log").open("wb") as log:
            first = _start([*settings, f"out={out}"], log)
            _until(lambda: progress(out) > 0, first)
            first.kill()
            first.wait()
            had, started = progress(out), time.monotonic()
            second = _start(["resume", str(out)], log)
            _until(lambda: progress(out) > had, second)
            seconds = time.monotonic() - started
            below = list(processes.descendants(second.pid))
            second.kill()
            second.wait()
            processes.gone(below, 120.0)
    return seconds


def _start(words: Sequence[str], log: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "autoprune", *words], stdout=log, stderr=log)  # type: ignore[call-overload,no-any-return]


def _until(holds: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not holds():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError("a run ended, or wrote nothing, while it was watched")
        time.sleep(0.02)
