"""`autoprune study scratch`: is a pruned model worth more than its architecture? The same one trained from scratch.

The check of "Rethinking the Value of Network Pruning" (Liu et al., arXiv 1810.05270; card J3): scratch-E spends as many
steps as the recovery, scratch-B the compute of search and recovery together.
"""

from __future__ import annotations

import copy
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from autoprune.errors import MeasurementError, SettingError, StoppedError
from autoprune.report.files import write_text
from autoprune.run.calibration import named_plan
from autoprune.run.folder import at_work
from autoprune.run.parts import open_parts
from autoprune.run.recovery import recovery_of, setting_of, train
from autoprune.run.study_table import StudyTable, check_settings
from autoprune.shape import AnalyticCosts
from autoprune.space import Plan, plan_cost

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.progress import Progress
    from autoprune.run.parts import Parts
    from autoprune.run.recovery import Setting

TABLE, SETTINGS, REPORT = "scratch.csv", "scratch.json", "scratch.md"
COLUMNS = ("model", "seed", "steps", "tokens", "step_kept", "kl_test", "perplexity_test")
NUMBERS = {
    **dict.fromkeys(("steps", "tokens", "step_kept"), int),
    **dict.fromkeys(("kl_test", "perplexity_test"), float),
}
PRUNED, RECOVERED, EQUAL, BUDGET = "pruned", "pruned, recovered", "scratch-E", "scratch-B"


@dataclass(frozen=True)
class Wanted:
    """A plan (as `calibration.reference` takes it), seeds of the start, and the fitness tokens its search took."""

    plan: str
    seeds: int
    search_tokens: float

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise SettingError(f"--seeds {self.seeds} must be at least 1")
        if not 0 <= self.search_tokens < math.inf:
            raise SettingError(f"--search-tokens {self.search_tokens} must be a finite number of at least 0")


@dataclass(frozen=True)
class _Job:
    """One model to train: its row's name, the seed of its start (None: the plan's own weights) and its steps."""

    model: str
    seed: int | None
    steps: int

    @property
    def key(self) -> tuple[str, str]:
        """Its place in the table."""
        return self.model, "" if self.seed is None else str(self.seed)


def study(cfg: DictConfig, wanted: Wanted, to: Path, command: str, progress: Progress) -> pd.DataFrame:
    """The table, which is written to `to` with a report; goes on where it stopped."""
    to.mkdir(parents=True, exist_ok=True)
    with at_work(to):
        parts = open_parts(cfg, progress)
        recovery = recovery_of(cfg)
        if recovery is None or recovery.steps < 1:
            raise SettingError("study scratch needs a recovery of at least one step: --steps 300")
        setting = setting_of(parts, recovery)
        of = parts.adapter.shape, parts.space_parts, int(cfg.window)
        plan = named_plan(wanted.plan, *of, "--plan", parts.baselines.named)
        if plan is None:
            raise SettingError(
                "--plan=dense is no pruned model; name a checkpoint, a plan file or uniform@0.5"
            )
        check_settings(to / SETTINGS, _settings(parts, plan, asdict(recovery)))
        jobs = list(_jobs(wanted, setting, parts, plan))
        frame = _table(parts, setting, plan, jobs, to, progress)
    write_text(to / REPORT, markdown(frame, plan, command))
    return frame


def _settings(parts: Parts, plan: Plan, recovery: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a row; more seeds may be asked for later."""
    cfg = parts.cfg
    trained = {f"recovery.{k}": v for k, v in recovery.items() if k not in ("points", "save_every")}
    judged = {name: int(cfg[name]) for name in ("selection_windows", "test_windows", "window", "seed")}
    return {**parts.digests, "plan": plan.key, **judged, **trained}


def _jobs(wanted: Wanted, setting: Setting, parts: Parts, plan: Plan) -> Iterator[_Job]:
    steps = setting.settings.steps
    yield _Job(PRUNED, None, 0)
    yield _Job(RECOVERED, None, steps)
    more = steps + _worth(wanted.search_tokens, parts, plan, setting.settings.batch)
    for seed in range(wanted.seeds):
        yield _Job(EQUAL, seed, steps)
        if more > steps:
            yield _Job(BUDGET, seed, more)


def _worth(tokens: float, parts: Parts, plan: Plan, batch: int) -> int:
    """Training steps for the compute of a search: every fitness token counted as a pass of the dense model.

    A training token is a pass of the dense model and three of the smaller one (forward, and backward twice as dear).
    """
    costs = AnalyticCosts(parts.adapter.shape, int(parts.cfg.window))
    dense, small = (plan_cost(p, costs)["flops"] for p in (parts.dense_plan(), plan))
    return math.floor(tokens * dense / ((dense + 3 * small) * batch * int(parts.cfg.window)))


def _table(
    parts: Parts, setting: Setting, plan: Plan, jobs: Sequence[_Job], to: Path, progress: Progress
) -> pd.DataFrame:
    table = StudyTable(to / TABLE, COLUMNS, NUMBERS)
    done = {(row["model"], row["seed"]): row for row in table.read()}
    for job in jobs:
        if job.key in done and int(done[job.key]["steps"]) == job.steps:
            continue
        try:
            row = _row(parts, setting, plan, job, to / ".training", progress)
        except KeyboardInterrupt:
            raise StoppedError(f"stopped before {job.model}; the same command goes on") from None
        done[job.key] = row
        table.write(done[j.key] for j in jobs if j.key in done)
        shutil.rmtree(to / ".training", ignore_errors=True)
        progress.say(f"{job.model}: test kl {row['kl_test']:.4f}")
    return table.frame(done[j.key] for j in jobs)


def _row(
    parts: Parts, setting: Setting, plan: Plan, job: _Job, state: Path, progress: Progress
) -> dict[str, Any]:
    """Train the job's model and score it on *test*, as it would be stored."""
    model = parts.build(plan, dtype=torch.float32)
    if job.seed is not None:
        model = fresh(model, job.seed)
    spent, kept = {"steps": 0, "tokens": 0}, 0
    if job.steps:
        longer = replace(setting, settings=replace(setting.settings, steps=job.steps))
        done = train(model, parts.loaded.dtype, longer, state, progress)
        if done.diverged is not None:
            raise MeasurementError(
                f"{job.model} diverged at step {done.diverged + 1}; "
                "try a smaller recovery.learning_rate in another folder"
            )
        spent, kept = {"steps": done.steps, "tokens": done.tokens}, done.kept
    else:
        model = parts.build(plan).float()
    score = setting.scoring.score(model, setting.test)
    figures = {"kl_test": score["kl"], "perplexity_test": score.get("perplexity", math.nan)}
    return {"model": job.model, "seed": job.key[1], **spent, "step_kept": kept, **figures}


def fresh(model: Any, seed: int) -> Any:
    """A model of the same class and config with new random weights, fp32; the global random state stays as it was."""
    config = copy.deepcopy(model.config)
    config.dtype = torch.float32
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = type(model)(config)
    return made.float().eval().to(model.device)


def markdown(frame: pd.DataFrame, plan: Plan, command: str) -> str:
    """Means over seeds, and what they say of the pruned weights."""
    lines = ["# Is the pruned model worth more than its architecture?", ""]
    lines += [verdict(frame), "", f"Plan `{plan.key}`; every model trained by the same recipe on *train*,"]
    lines += ["the weights of lowest KL on *selection* kept, scored on *test* as stored.", ""]
    lines += [
        "| model | seeds | steps | tokens | test KL | spread | perplexity |",
        "|---" + "|---:" * 6 + "|",
    ]
    for name, rows in frame.groupby("model", sort=False):
        kl, perplexity = rows["kl_test"], rows["perplexity_test"]
        spread = f"{kl.std(ddof=1):.4f}" if len(rows) > 1 else ""
        cells = [str(name), str(len(rows)) if rows["seed"].iloc[0] != "" else "", str(rows["steps"].iloc[0])]
        cells += [f"{rows['tokens'].iloc[0]:,}", f"{kl.mean():.4f}", spread, f"{perplexity.mean():.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Remade by: `{command}`", ""])


def verdict(frame: pd.DataFrame) -> str:
    """Recovered against the best that random weights came to."""
    means = frame.groupby("model")["kl_test"].mean()
    others = {name: means[name] for name in (EQUAL, BUDGET) if name in means}
    best = min(others, key=lambda name: others[name])
    ratio = means[RECOVERED] / others[best]
    if ratio < 1:
        return f"The pruned weights are worth keeping: recovered, their test KL is {ratio:.3f} of that of {best}."
    return (
        f"warning: the pruned weights are not worth keeping: {best} has a test KL {1 / ratio:.3f} of that of the "
        "recovered model; what the search found is an architecture"
    )
