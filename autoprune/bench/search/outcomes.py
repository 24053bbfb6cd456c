"""What came of every run of a comparison: the plans it would have handed out at each number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context

from autoprune.bench.search.methods import Method
from autoprune.bench.search.replay import replayed
from autoprune.bench.search.runs import Case, Setting, opened, searched
from autoprune.bench.search.scoring import Scored, scoring_of

EARLIER = (1 / 8, 1 / 4, 1 / 2)  # of each budget: where the curve of a long run is read besides


@dataclass(frozen=True)
class Task:
    """A run, where its curve is read, and how many finalists each reading may score on *selection*."""

    case: Case
    tokens: tuple[int, ...]
    finalists: int


@dataclass(frozen=True)
class Outcome:
    """Plans by tokens (one at a budget, several of a front), and what the whole run took."""

    case: Case
    plans: dict[int, list[Scored]]
    spent: int
    wall: float
    thread: float
    block_runs: float


def tasks(
    methods: Sequence[Method],
    targets: Sequence[float | None],
    budgets: Sequence[int],
    seeds: int,
    finalists: int,
) -> Iterator[Task]:
    """One run for all budgets where a long run holds the shorter ones, else one a budget; seed by seed.

    Fronts are read at the budgets only, and stitched ones hold no shorter one: their targets share the tokens.
    """
    for seed in range(seeds):
        for method in methods:
            for target in targets:
                if method.anytime and target is not None:
                    yield Task(Case(method, target, max(budgets), seed), _readings(budgets), finalists)
                else:
                    for tokens in sorted(budgets):
                        yield Task(Case(method, target, tokens, seed), (tokens,), finalists)


def _readings(budgets: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({*budgets, *(int(b * share) for b in budgets for share in EARLIER)}))


def outcomes(setting: Setting, todo: Sequence[Task], jobs: int) -> list[Outcome]:
    """Of all tasks in order, in `jobs` processes of one thread each."""
    scoring_of(setting)  # what all need is built once, before they start
    settings = [setting] * len(todo)
    if jobs == 1:
        return [outcome(setting, task) for task in todo]
    with _pool(jobs) as pool:
        return list(pool.map(outcome, settings, todo))


@contextmanager
def _pool(jobs: int) -> Iterator[ProcessPoolExecutor]:
    """Processes that end at once when this one is interrupted: their runs go on next time."""
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))
    try:
        yield pool
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise
    pool.shutdown()


def outcome(setting: Setting, task: Task) -> Outcome:
    """Search, or read what was searched, and score what the run comes to."""
    case = task.case
    found = searched(setting, case)
    scoring = scoring_of(setting)
    with opened(case.folder(setting)) as ledger:
        scoring.check(ledger)
        whole = task.tokens == (case.tokens,)
        named = {} if whole else replayed(scoring.driver(case.overrides(setting)), ledger, task.tokens)
    plans = {}
    for tokens in task.tokens:
        left = found if whole else replace(found, frame=found.at(tokens), named=named[tokens])
        if case.target is None:
            plans[tokens] = scoring.front(left.frame, left.named)
        else:
            best = scoring.best(left.frame, left.named, case.target, task.finalists)
            plans[tokens] = [] if best is None else [best]
    spent = int(found.frame["tokens"].sum())
    return Outcome(case, plans, spent, found.wall, found.thread, found.block_runs)
