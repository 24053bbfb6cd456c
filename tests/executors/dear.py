"""A search with dear evaluations on a tiny model: in this process, or in one that is meant to be killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from autoprune.executors import trials
from autoprune.executors.tune import Tune
from autoprune.objective import Fidelity, Proposal, Split
from autoprune.run.parts import Parts
from autoprune.run.remote import spec_of
from autoprune.space import Candidate, Plan
from autoprune.study import Job

BLOCKS, STEPS, RUNG = 3, 8, 4
SETTINGS = (
    *(
        "window=16",
        "sequences=4",
        "calibration.tokens=256",
        "latency.mode=off",
        "quiet=true",
        "evaluator=[divergence]",
    ),
    *("recovery=distill", f"recovery.steps={STEPS}", "recovery.batch=2", "recovery.learning_rate=1e-3"),
    *("recovery.precision=fp32", "selection_windows=2", "test_windows=2"),
)
PLANS = [Plan.of([(groups, width)] * BLOCKS) for groups, width in ((1, 24), (2, 24), (1, 12), (2, 48))]
FIDELITY = Fidelity(Split.FITNESS, (0, 4))


def parts(folder: Path) -> Parts:
    """What the folder's model and text make; the folder has an artifact cache of its own."""
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts

    os.environ["AUTOPRUNE_CACHE"] = str(folder / "cache")
    named = [f"model={folder}/model", f"data={folder}/text.txt", f"out={folder}/out"]
    with Progress(quiet=True) as quiet:
        return open_parts(compose([*named, *SETTINGS]), quiet)


def jobs(count: int, first: int = 0) -> list[Job]:
    """One a plan."""
    return [Job(Proposal(first + i, Candidate((i,)), FIDELITY), plan) for i, plan in enumerate(PLANS[:count])]


def opened(made: Parts, **settings: Any) -> Tune:
    """An executor of one worker at work on it."""
    executor = Tune(**{"workers": 1, "first": RUNG, "halving": 1, **settings})
    executor.open(made.evaluation(made.evaluators), spec_of(made))
    return executor


ORIGINAL = trials.run_trial
LONG = {"steps": 60, "first": 20}  # of a training that is killed in the middle


def run_trial(*given: Any, **settings: Any) -> None:
    """The executor's own, but from its second report on it waits to be killed."""
    from ray import tune

    report = tune.report

    def held(told: dict[str, Any]) -> None:
        if told["step"] > LONG["first"]:
            time.sleep(600)
        report(told)

    tune.report = held
    ORIGINAL(*given, **settings)


def train(folder: Path, address: str) -> None:
    """In a process that is meant to be killed."""
    trials.run_trial = run_trial
    running = opened(parts(folder), address=address, **LONG)
    running.submit(jobs(1))
    for found in running.results():
        print(found, flush=True)
