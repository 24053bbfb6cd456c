"""`autoprune bench scale`: the study, ledger and searchers of a run against simulated workers, 1 to 4,096 of them.

**Simulated**: workers, their failures and the clock. Real: the searcher, the study, the ledger on this disk, and the
time that they take (thread time of the driver, which the simulated clock waits for). 500 blocks, 1,000 genes,
`params: 0.5x`. An evaluation takes 5 s (log-normal, 0.2), 1 % of them four times as long; 2 % kill their worker at a
random moment, are run again, and the worker is back after 5 s; sending one off and taking it in costs the driver 0.7
ms (measured: processor time of a Ray call with a plan of 1,000 genes while 1,024 others are out). An evaluation is
one piece here: a real batch is cut further, between windows. *Efficiency*: seconds that workers worked for results,
of all their seconds until the queue ran dry; *whole run*: until the last result, in a run that is short, so that its
end weighs more than it would. *Driver*: thread time a result; *limit*: results a second at which it would be busy all
the time. *Memory*: the largest resident size of the whole process, and what a result adds. `--recorded RUN` draws
durations from the telemetry of a run. Second table: what being asked ahead costs a search: how far above the exact
optimum the best candidate of 8,192 evaluations lies, 100 genes, median of 3 seeds.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.bench.methods import searcher, structured
from autoprune.bench.paper import paper
from autoprune.bench.simulation import Clock, Conditions, Simulated
from autoprune.bench.table import parser, publish
from autoprune.errors import SettingError
from autoprune.ledger import FILE, Ledger, Recorded
from autoprune.objective import Constraint, Fidelity, Objective, Proposal, Result, Split, Status
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.problem import Problem
from autoprune.searchers.tabular import Tabular
from autoprune.shape import AnalyticCosts, Shape
from autoprune.study import Budget, Phase, Study

SHAPE = Shape(
    "llama", blocks=500, hidden=144, heads=6, kv_groups=3, head_dim=24, ffn=256, vocabulary=2048, tied=True
)
OBJECTIVES = (Objective("kl"), Objective("params"))
WINDOWS, WINDOW, RATIO = 64, 256, 0.5
WORKERS = (1, 16, 256, 1024, 4096)
ROUNDS = 16  # evaluations a worker, of methods that are asked ahead
MOST = 49_152  # evaluations of a row
PLAIN = 1024  # evaluations of a method that waits for each of its batches
AUTO, AUTO_WORKERS = 9216, (16, 1024)  # its sensitivity table alone takes 5,501
DEEP, GENERATION = 8, 64  # evaluations out for each worker of methods that are asked ahead; in a batch
SIZES = {"nsga2": "population", "random": "batch"}
STALE: tuple[tuple[str, Mapping[str, Any]], ...] = (
    ("nsga2", {"population": 64}),
    ("nsga2", {"population": 64, "ahead": 16}),
    ("nsga2", {"population": 256}),
    ("nsga2", {"population": 256, "ahead": 4}),
    ("nsga2", {"population": 256, "ahead": 16}),
    ("random", {}),
)
STALE_SHAPE = replace(SHAPE, blocks=50)
STALE_EVALUATIONS = 8192


@dataclass(frozen=True)
class Case:
    """One row."""

    method: str
    settings: Mapping[str, Any]
    conditions: Conditions
    evaluations: int


@dataclass(frozen=True)
class Measured:
    """What came of a row; memory in bytes."""

    clock: Clock
    evaluations: int
    results: int
    base: int
    peak: int


def main(args: Sequence[str]) -> None:
    """Run, print and write the tables; or with `--paper` those that need no run."""
    options = _parse(args)
    if options.paper:
        publish("scale", paper.__doc__, args, paper(), options.to or "results/bench/scale-paper.md")
        return
    recorded = _recorded(Path(options.recorded)) if options.recorded else ()
    base = Conditions(1, seconds=options.seconds, failures=options.failures, recorded=recorded)
    lines = [
        "| method | settings | workers | evaluations | efficiency | whole run | driver | limit | memory |",
        "|" + "---|" * 9,
    ]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as fresh:
        for workers in options.workers:
            for case in cases(options.methods, replace(base, workers=workers), options.rounds):
                lines.append(_line(case, fresh.submit(simulate, case).result()))
                print(lines[-1], file=sys.stderr, flush=True)
    lines += ["", f"Ledger: {ledger_rate():,.0f} results a second (WAL, synchronous=NORMAL; wall time)."]
    if options.stale:
        lines += ["", "| method | settings | above the optimum |", "|---|---|---|"]
        lines += [f"| {name} | {_text(given)} | {_stale(name, given):.0%} |" for name, given in STALE]
    publish("scale", __doc__, args, "\n".join(lines), options.to or "results/bench/scale.md")


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("scale", __doc__, model=False)
    found.set_defaults(to=None)
    found.add_argument("--methods", nargs="+", default=["nsga2", "evopress", "auto"], help="which")
    found.add_argument("--workers", nargs="+", type=int, default=WORKERS, help="how many")
    found.add_argument("--rounds", type=int, default=ROUNDS, help="evaluations a worker")
    found.add_argument("--seconds", type=float, default=5.0, help="of an evaluation, on average")
    found.add_argument(
        "--failures", type=float, default=0.02, help="share of attempts that kill their worker"
    )
    found.add_argument(
        "--recorded", metavar="RUN", help="a run folder whose durations are drawn, scaled to --seconds"
    )
    found.add_argument("--no-stale", dest="stale", action="store_false", help="leave out the second table")
    found.add_argument(
        "--paper", action="store_true", help="the searches worked out on paper, and nothing else"
    )
    return found.parse_args(list(args))


def cases(methods: Sequence[str], conditions: Conditions, rounds: int) -> list[Case]:
    """The rows of so many workers: a method as it is, and asked ahead where it can be."""
    found = []
    for method in methods:
        if method == "auto" and conditions.workers not in AUTO_WORKERS:
            continue
        found.append(Case(method, {}, conditions, AUTO if method == "auto" else PLAIN))
        if method in SIZES:
            count = min(MOST, max(PLAIN, rounds * conditions.workers))
            ahead = max(2, DEEP * conditions.workers // GENERATION)
            found.append(Case(method, {SIZES[method]: GENERATION, "ahead": ahead}, conditions, count))
    return found


def problem_of(shape: Shape, seed: int, evaluations: int) -> Problem:
    """`params: 0.5x` of a shape."""
    space = structured(shape, [AnalyticCosts(shape)])
    limit = Constraint("params", RATIO * space.cost(space.dense)["params"], f"{RATIO:g}x")
    seeds = seed_candidates(space, [limit], (), seed)
    return Problem(space, OBJECTIVES, (limit,), seed, WINDOWS, seeds, evaluations * WINDOW * 4, WINDOW)


def simulate(case: Case, shape: Shape = SHAPE) -> Measured:
    """One search on simulated workers, with a ledger of its own."""
    problem = problem_of(shape, case.conditions.seed, case.evaluations)
    executor = Simulated(case.conditions, Tabular(problem.space, case.conditions.seed))
    base = _resident()
    made = searcher(case.method, problem, case.settings)
    budget = Budget(evaluations=case.evaluations)
    phase = Phase(0, problem.space, made, problem.objectives, problem.constraints, budget, WINDOW)
    with tempfile.TemporaryDirectory() as folder, closing(Ledger.create(Path(folder) / FILE, {})) as ledger:
        executor.start()
        Study(phase, ledger, executor).run()
        results, evaluations = _counts(Path(folder) / FILE)
    return Measured(executor.clock, evaluations, results, base, _peak())


def _counts(file: Path) -> tuple[int, int]:
    """Results and evaluations of a ledger."""
    with closing(sqlite3.connect(file)) as db:
        found = db.execute("SELECT COUNT(*), SUM(origin = 'evaluated') FROM results").fetchone()
    return int(found[0]), int(found[1])


def ledger_rate(rows: int = 2000, shape: Shape = SHAPE) -> float:
    """Results a second that a ledger takes, each a transaction of its own with values of 16 windows."""
    problem = problem_of(shape, 0, rows)
    fidelity = Fidelity(Split.FITNESS, (0, 16))
    proposals = [Proposal(i, problem.space.dense, fidelity) for i in range(rows)]
    metrics = {"kl": 0.1, **problem.space.cost(problem.space.dense)}
    values = {"kl": np.linspace(0.0, 1.0, 16)}
    results = [
        Recorded(Result(p, Status.OK, metrics, values), f"{p.id:012d}", "evaluated", 1) for p in proposals
    ]
    with tempfile.TemporaryDirectory() as folder, closing(Ledger.create(Path(folder) / FILE, {})) as ledger:
        started = time.perf_counter()
        for number in range(0, rows, 64):
            ledger.record_batch(0, number, 64, proposals[number : number + 64])
        for recorded in results:
            ledger.record(0, recorded)
        return rows / (time.perf_counter() - started)


def _line(case: Case, found: Measured) -> str:
    clock, workers = found.clock, case.conditions.workers
    driver = clock.driver / found.evaluations
    adds = (found.peak - found.base) / found.results
    cells = (
        *(case.method, _text(case.settings), f"{workers:,}", f"{found.evaluations:,}"),
        f"{clock.useful_sent / (workers * clock.sent):.1%}",
        f"{clock.useful / (workers * clock.now):.1%}",
        f"{1e3 * driver:.2f} ms",
        f"{1 / (driver + case.conditions.call):,.0f}/s",
        f"{found.peak / 2**20:,.0f} MB, {adds / 2**10:.0f} KB a result",
    )
    return f"| {' | '.join(cells)} |"


def _text(settings: Mapping[str, Any]) -> str:
    return " ".join(f"{k}={v}" for k, v in settings.items()) or "–"


def _stale(method: str, settings: Mapping[str, Any]) -> float:
    """Median over seeds of how far the best candidate lies above the optimum."""
    return statistics.median(_gap(method, settings, seed) for seed in range(3))


def _gap(method: str, settings: Mapping[str, Any], seed: int) -> float:
    problem = problem_of(STALE_SHAPE, seed, STALE_EVALUATIONS)
    evaluate, best = Tabular(problem.space, seed), float("inf")
    made = searcher(method, problem, settings)
    out: deque[list[Proposal]] = deque()
    for _ in range(0, STALE_EVALUATIONS, made.batch):
        while len(out) < getattr(made, "ahead", 1) and (asked := made.ask(made.batch)):
            out.append(asked)
        results = [evaluate(p) for p in out.popleft()]
        best = min(best, *(r.metrics["kl"] for r in results))
        made.tell(results)
    return best / evaluate.optimum(problem.constraints[0]) - 1.0


def _recorded(run: Path) -> tuple[float, ...]:
    """Mean thread seconds of the evaluations of each batch of a run."""
    file = run / FILE
    if not file.is_file():
        raise SettingError(f"--recorded {run} is not a run folder: it holds no {FILE}")
    counts = (
        "SELECT t.payload, (SELECT COUNT(*) FROM proposals p JOIN results r USING (phase, id) WHERE "
        "p.phase = t.phase AND p.batch = t.batch AND r.origin = 'evaluated') FROM telemetry t"
    )
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True)) as db:
        rows = [(json.loads(payload), count) for payload, count in db.execute(counts)]
    found = tuple(told["thread_seconds"] / n for told, n in rows if n and told.get("thread_seconds", 0) > 0)
    if not found:
        raise SettingError(f"--recorded {run}: its ledger holds no thread seconds of evaluations")
    return found


def _resident() -> int:
    """Bytes of memory of this process now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def _peak() -> int:
    """Bytes of memory of this process at most so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
