"""`autoprune bench crash`: searches killed with SIGKILL at random moments, resumed, and compared with one left alone.

Each run starts with an empty artifact cache and is killed several times: its driver, or on Ray in turns a worker, the
driver, the raylet (the daemon of the node, without which the driver cannot go on), and all processes of the run at
once; then it is left to finish. Moments are drawn from what remains of the run, so that the kills of a run fall on
all of it: before its first record, at any record, after the last one. The same means: the ordered ledger, values per
window included, and every score in the leaderboard are equal to the last bit. Drivers are copies of a process that has
the libraries loaded.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.bench import processes, small
from autoprune.bench.table import parser, publish
from autoprune.ledger import FILE, Ledger, holds_run

SCORES = ("key", "kl_fitness", "kl_selection", "kl_test", "perplexity_test")
RESUMABLE = 3  # exit code of a run that stopped and can be resumed
STOPS = 3  # how often a run may stop so by itself
PATIENCE = 600.0  # seconds for a run that is left alone
PATIENCE_LEFT = 120.0  # seconds for the last of its processes to end
BEFORE, AFTER = 0.15, 0.1  # shares of the moments before the first and after the last record
LATER = 12.0  # at most so many records' time after a record: they come in bursts, a batch at a time
OPENING = 0.5  # seconds in which a worker that has just started may be killed
LAST = 0.9  # share of the search's records after which workers are left alone: they are about to go
TABLES = ("results", "finals")  # of the ledger
VICTIMS = ("worker", "raylet", "run", "driver")  # on Ray, in turns
SEARCHING = ("worker", "raylet")  # there is Ray while the search runs
STAGES = ("setting up", "searching", "finalists", "writing")


@dataclass(frozen=True)
class Outcome:
    """What came of one run: what was killed while it did what, and whether it ended like the undisturbed one."""

    executor: str
    kills: tuple[tuple[str, str], ...]  # (victim, stage)
    same: bool
    left: bool  # a process outlived the run


def main(args: Sequence[str]) -> None:
    """Kill, resume, compare, print and write the table; exit code 1 when a run ended differently."""
    options = _parse(args)
    with tempfile.TemporaryDirectory(prefix="autoprune-crash-") as work:
        outcomes = torture(Path(work), options.times, options.ray, options.each, options.seed)
    text = table(outcomes)
    publish("crash", __doc__, args, text, options.to)
    if not all(o.same for o in outcomes):
        raise SystemExit(1)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("crash", __doc__, model=False)
    found.add_argument("--times", type=int, default=100, help="how many kills")
    found.add_argument("--ray", type=int, default=10, help="how many of them on runs with executor=ray")
    found.add_argument("--each", type=int, default=5, help="kills of one run before it is left alone")
    found.add_argument("--seed", type=int, default=0, help="of the moments")
    return found.parse_args(list(args))


def torture(work: Path, times: int, ray: int, each: int, seed: int) -> list[Outcome]:
    """Runs that are killed `times` times in all, `ray` of them with Ray."""
    draw = random.Random(seed)
    words = small.make(work)
    _run_here([*words, f"out={work / 'reference'}"], work / "cache")
    reference = result(work / "reference")
    pace = _pace(work / "alone", words, reference)
    outcomes: list[Outcome] = []
    for executor, wanted in (("serial", times - ray), ("ray", ray)):
        done = 0
        while done < wanted:  # a run that was faster than its killer counts for nothing
            folder = work / f"{executor}-{len(outcomes)}"
            hunt = Hunt(folder, [*words, f"executor={executor}"], draw, pace)
            outcomes.append(hunt.run(min(each, wanted - done), reference))
            done += len(outcomes[-1].kills)
            shutil.rmtree(folder)
    return outcomes


@dataclass(frozen=True)
class Pace:
    """How an undisturbed run goes: seconds before its first record, for each, and after the last one; its records."""

    before: float
    each: float
    after: float
    searched: int  # records of the search
    records: int

    def share(self, records: float) -> float:
        """How far a run with so many records has come, 0 to 1."""
        return BEFORE + (1 - BEFORE - AFTER) * records / self.records if records else 0.0


def due(draw: random.Random, at: float, end: float, left: int) -> float:
    """The first of `left` moments drawn evenly from what remains, from `at` to `end`."""
    return at + (end - at) * float(1 - draw.random() ** (1 / left))


def _pace(folder: Path, words: Sequence[str], reference: Any) -> Pace:
    """From a copy of this process that is left alone."""
    folder.mkdir()
    run, started, marks = folder / "run", time.monotonic(), [0.0, 0.0]
    pid = processes.fork([*words, f"out={run}"], folder / "log", {"AUTOPRUNE_CACHE": str(folder / "cache")})
    records = 0
    while processes.wait(pid, 0.01) is None:
        now = progress(run)
        if now > records:
            marks = [marks[0] or time.monotonic() - started, time.monotonic() - started]
        records = max(records, now)
    if result(run) != reference:
        raise RuntimeError("two runs that nobody disturbed differ")
    first, last = marks
    after = time.monotonic() - started - last
    return Pace(first, (last - first) / records, after, progress(run, TABLES[:1]), records)


class Hunt:
    """One run that is killed now and then until it is left to finish."""

    def __init__(self, folder: Path, words: Sequence[str], draw: random.Random, pace: Pace) -> None:
        folder.mkdir()
        self._run, self._log, self._words = folder / "run", folder / "log", words
        self._environment = {"AUTOPRUNE_CACHE": str(folder / "cache")}
        self._draw, self._pace = draw, pace
        self._ray = "executor=ray" in words
        self._at = 0.0  # the share of the run at which it was last killed
        self._kills: list[tuple[str, str]] = []
        self._stops = 0  # by itself
        self._seen: set[int] = set()

    def run(self, kills: int, reference: Any) -> Outcome:
        """Kill up to so many times, let it finish, compare."""
        status, ended = -1, False
        while (status < 0 or ended) and not _finished(
            self._run
        ):  # the last kill may come after the last word
            pid = processes.fork(self._line(), self._log, self._environment)
            had = len(self._kills)
            status = self._hunted(pid, kills)
            ended = bool(status) and len(self._kills) > had and self._kills[-1][0] == "raylet"
            ended = ended or self._may_go_on(status)
        if status and not _finished(self._run):
            raise RuntimeError(f"a run ended with exit code {status}:\n{self._log.read_text()}")
        return Outcome(
            executor="ray" if self._ray else "serial",
            kills=tuple(self._kills),
            same=result(self._run) == reference,
            left=not processes.gone(list(self._seen), PATIENCE_LEFT),
        )

    def _may_go_on(self, status: int) -> bool:
        """Whether a run that stopped by itself is resumed: on a busy machine a Ray may not start in time."""
        self._stops += status == RESUMABLE
        return status == RESUMABLE and self._stops <= STOPS

    def _line(self) -> list[str]:
        if holds_run(self._run / FILE):
            return ["resume", str(self._run)]
        return [*self._words, f"out={self._run}"]

    def _hunted(self, pid: int, kills: int) -> int:
        """Kill a process or its workers until it has ended; its exit status."""
        last = self._pace.share(LAST * self._pace.searched)
        while (left := kills - len(self._kills)) > 0:
            at = max(self._at, self._pace.share(progress(self._run)))
            victim = self._next() if at < last else "driver"
            self._at = due(self._draw, at, last if victim in SEARCHING else 1.0, left)
            if (status := self._approach(pid, victim in SEARCHING)) is not None:
                return status
            self._seen |= set(processes.descendants(pid))
            if self._kill(pid, victim) and victim != "worker":
                return self._ended(pid)
        return self._ended(pid)

    def _next(self) -> str:
        return VICTIMS[len(self._kills) % len(VICTIMS)] if self._ray else "driver"

    def _kill(self, pid: int, victim: str) -> bool:
        """End a victim; False when there is none (any more)."""
        prey = {
            "worker": processes.workers(pid)[:1],
            "driver": [pid],
            "raylet": processes.raylets(pid),
            "run": [*processes.descendants(pid), pid],
        }[victim]
        if victim == "worker" and prey:
            prey = [self._draw.choice(processes.workers(pid) or prey)]
        for process in prey:
            processes.kill(process)
        if prey:
            self._kills.append((victim, stage(self._run)))
        return bool(prey)

    def _ended(self, pid: int) -> int:
        """The exit status of a process that is left alone; raises RuntimeError when it hangs."""
        status = processes.wait(pid, PATIENCE)
        if status is None:
            processes.kill(pid)
            raise RuntimeError(f"a run hangs:\n{self._log.read_text()}")
        return status

    def _approach(self, pid: int, prey: bool) -> int | None:
        """Wait for the moment that was drawn, and for workers if they are the prey; the exit status if too late."""
        pace, draw = self._pace, self._draw
        while prey and not processes.workers(pid):
            if (status := processes.wait(pid, 0.2)) is not None:
                return status
        if self._at < BEFORE:
            return processes.wait(pid, draw.uniform(0, OPENING) if prey else self._at / BEFORE * pace.before)
        rest = max(0.0, self._at - (1 - AFTER)) / AFTER
        records = min(1.0, (self._at - BEFORE) / (1 - BEFORE - AFTER)) * pace.records
        while progress(self._run) < int(records):
            if (status := processes.wait(pid, 0.001)) is not None:
                return status
        return processes.wait(pid, rest * pace.after if rest else draw.uniform(0, LATER * pace.each))


def _run_here(words: Sequence[str], cache: Path) -> None:
    """A search in this process, which loads all libraries: its copies start at once."""
    from autoprune.cli import main as command

    before = os.environ.get("AUTOPRUNE_CACHE")
    os.environ["AUTOPRUNE_CACHE"] = str(cache)
    try:
        if command(list(words)):
            raise RuntimeError("the undisturbed run failed")
    finally:
        del os.environ["AUTOPRUNE_CACHE"]
        if before is not None:
            os.environ["AUTOPRUNE_CACHE"] = before


def result(run: Path) -> Any:
    """All that must be the same: the ordered ledger, and the scores in the leaderboard."""
    import pandas as pd

    ledger = Ledger.open(run / FILE)
    rows = ledger.ordered()
    ledger.close()
    return rows, pd.read_csv(run / "leaderboard.csv")[list(SCORES)].to_csv()


def progress(run: Path, tables: Sequence[str] = TABLES) -> int:
    """Results and held-out scores recorded so far."""
    path = run / FILE
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as db:
            return sum(int(db.execute(f"SELECT COUNT(*) FROM {t}").fetchone()[0]) for t in tables)
    except sqlite3.Error:  # the tables are not there yet
        return 0


def _finished(run: Path) -> bool:
    """Whether there is nothing to resume."""
    if not holds_run(run / FILE):
        return False
    ledger = Ledger.open(run / FILE)
    found = bool(ledger.events("finished"))
    ledger.close()
    return found


def stage(run: Path) -> str:
    """What a run was doing when it was killed."""
    if not holds_run(run / FILE):
        return STAGES[0]
    ledger = Ledger.open(run / FILE)
    at = 1 + bool(ledger.events("searched")) + bool(ledger.events("wall"))
    ledger.close()
    return STAGES[at]


def table(outcomes: Sequence[Outcome]) -> str:
    """One line per executor and victim, and what was wrong."""
    lines = [f"| executor | killed | times | {' | '.join(STAGES)} |", "|" + "---|" * (3 + len(STAGES))]
    kills = [(o.executor, *kill) for o in outcomes for kill in o.kills]
    for executor, victim in dict.fromkeys((e, v) for e, v, _ in kills):
        count = Counter(s for e, v, s in kills if (e, v) == (executor, victim))
        cells = [executor, victim, str(count.total()), *(str(count[s]) for s in STAGES)]
        lines.append(f"| {' | '.join(cells)} |")
    wrong, left = sum(not o.same for o in outcomes), sum(o.left for o in outcomes)
    return "\n".join(
        [
            *lines,
            "",
            f"{len(kills)} kills in {len(outcomes)} runs. Runs that ended differently: {wrong}. Runs that left a "
            f"process behind for more than {PATIENCE_LEFT:.0f} s: {left}.",
        ]
    )
