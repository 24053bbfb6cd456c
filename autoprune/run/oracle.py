"""`autoprune study oracle`: does fitness rank plans as it would after recovery? Random plans of one size, both ways.

The check of "Is Oracle Pruning the True Oracle?" (Feng, Tao and Wang, arXiv 2412.00143) on one's own model and budget.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from autoprune.errors import MeasurementError, SettingError, StoppedError
from autoprune.evaluation import Failure
from autoprune.objective import Constraint, Fidelity, Objective, Split, parse_constraint
from autoprune.report.correlation import Tau, kendall
from autoprune.report.files import write_text
from autoprune.run.folder import at_work
from autoprune.run.parts import open_parts, search_evaluation
from autoprune.run.recovery import recovery_of, setting_of, train
from autoprune.run.seeds import scattered
from autoprune.run.study_table import StudyTable, check_settings
from autoprune.space import Plan, Space, dense_costs

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.progress import Progress
    from autoprune.run.parts import Parts
    from autoprune.run.recovery import Setting

TABLE, SETTINGS, REPORT = "oracle.csv", "oracle.json", "oracle.md"
BEFORE, AFTER = "kl_fitness", "kl_fitness_recovered"
COLUMNS = ("key", "params_ratio", BEFORE, AFTER, "recovery_steps", "recovery_tokens", "step_kept", "plan")
NUMBERS = {
    **dict.fromkeys(("params_ratio", BEFORE, AFTER), float),
    **dict.fromkeys(("recovery_steps", "recovery_tokens", "step_kept"), int),
}
LOW = 0.3  # below it a ranking is of little use; a choice of this project, not a test of significance
LEAST = 3  # plans: fewer have no interval worth the name


@dataclass(frozen=True)
class Wanted:
    """So many random plans within a bound on block parameters, scored on the first `windows` fitness windows."""

    plans: int
    ratio: str
    windows: int

    def __post_init__(self) -> None:
        for name, least in (("plans", LEAST), ("windows", 1)):
            if getattr(self, name) < least:
                raise SettingError(f"--{name} {getattr(self, name)} must be at least {least}")


def study(cfg: DictConfig, wanted: Wanted, to: Path, command: str, progress: Progress) -> tuple[Tau, str]:
    """Tau of fitness before and after recovery, and the report, which is written to `to`; goes on where it stopped."""
    to.mkdir(parents=True, exist_ok=True)
    with at_work(to):
        parts = open_parts(cfg, progress)
        recovery = recovery_of(cfg)
        if recovery is None or recovery.steps < 1:
            raise SettingError("study oracle needs a recovery of at least one step: --steps 60")
        setting, space = setting_of(parts, recovery), parts.space(None)
        bound = parse_constraint("params", wanted.ratio, dense_costs(space))
        plans, fidelity = _plans(parts, space, bound, wanted), _fidelity(parts, wanted)
        check_settings(to / SETTINGS, _settings(parts, wanted, asdict(setting.settings)))
        rows = _rows(parts, setting, plans, fidelity, to, progress)
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    tau = kendall(frame[BEFORE].tolist(), frame[AFTER].tolist())
    report = markdown(frame, tau, command)
    write_text(to / REPORT, report)
    return tau, report


def _settings(parts: Parts, wanted: Wanted, recovery: Mapping[str, Any]) -> dict[str, Any]:
    """All that decides a row; more plans may be asked for later."""
    cfg = parts.cfg
    own = {"ratio": wanted.ratio, "windows": wanted.windows, "seed": int(cfg.seed)}
    trained = {f"recovery.{k}": v for k, v in recovery.items() if k not in ("points", "save_every")}
    judged = {"selection_windows": int(cfg.selection_windows), "window": int(cfg.window)}
    return {**parts.digests, **own, **judged, **trained}


def _plans(parts: Parts, space: Space, bound: Constraint, wanted: Wanted) -> dict[str, dict[str, Any]]:
    """By key: the plan, and its share of the dense block parameters."""
    dense = dense_costs(space)["params"]
    found = {}
    for candidate in scattered(space, bound, wanted.plans, int(parts.cfg.seed)):
        plan = space.decode(candidate)
        found[plan.key] = {"plan": plan, "params_ratio": space.cost(candidate)["params"] / dense}
    return found


def _fidelity(parts: Parts, wanted: Wanted) -> Fidelity:
    there = parts.corpus.count(Split.FITNESS)
    if wanted.windows > there:
        raise SettingError(f"--windows {wanted.windows} is more than the {there} fitness windows there are")
    return Fidelity(Split.FITNESS, (0, wanted.windows))


def _rows(
    parts: Parts,
    setting: Setting,
    plans: Mapping[str, Mapping[str, Any]],
    fidelity: Fidelity,
    to: Path,
    progress: Progress,
) -> list[dict[str, Any]]:
    """One row a plan, in the order of the draw; each is in the table as soon as it is known."""
    table = StudyTable(to / TABLE, COLUMNS, NUMBERS)
    done = {str(row["key"]): row for row in table.read()}
    missing = [key for key in plans if key not in done]
    before = _before(parts, [plans[key]["plan"] for key in missing], fidelity, progress)
    for number, key in enumerate(missing, len(plans) - len(missing) + 1):
        try:
            after = _after(parts, setting, plans[key]["plan"], fidelity, to / f".{key}.recovery", progress)
        except KeyboardInterrupt:
            raise StoppedError(
                f"stopped with {number - 1} of {len(plans)} plans; the same command goes on"
            ) from None
        plan, ratio = plans[key]["plan"].to_json(), plans[key]["params_ratio"]
        done[key] = {"key": key, "params_ratio": ratio, BEFORE: before[key], **after, "plan": plan}
        table.write(done.values())
        shutil.rmtree(to / f".{key}.recovery", ignore_errors=True)
        progress.say(
            f"plan {number} of {len(plans)}: fitness kl {before[key]:.4f}, recovered {after[AFTER]:.4f}"
        )
    return [done[key] for key in plans]


def _before(parts: Parts, plans: Sequence[Plan], fidelity: Fidelity, progress: Progress) -> dict[str, float]:
    """Fitness as a search sees it."""
    if not plans:
        return {}
    with progress.stage("fitness before recovery"):
        found = search_evaluation(parts, [Objective("kl")]).evaluate(plans, fidelity)
    for outcome in found:
        if isinstance(outcome, Failure):
            raise MeasurementError(f"a random plan has no fitness: {outcome.reason}")
    return {p.key: s.metrics["kl"] for p, s in zip(plans, found, strict=True) if not isinstance(s, Failure)}


def _after(
    parts: Parts, setting: Setting, plan: Plan, fidelity: Fidelity, state: Path, progress: Progress
) -> dict[str, Any]:
    """Fitness of the recovered plan, as it would be stored, on the same windows."""
    model = parts.build(plan, dtype=torch.float32)
    done = train(model, parts.loaded.dtype, setting, state, progress)
    if done.diverged is not None:
        raise MeasurementError(
            f"the recovery of plan {plan.key} diverged at step {done.diverged + 1}; try a smaller "
            "recovery.learning_rate in another folder"
        )
    kl = setting.scoring.score(model, fidelity)["kl"]
    spent = {"recovery_steps": done.steps, "recovery_tokens": done.tokens, "step_kept": done.kept}
    return {AFTER: kl, **spent}


def warning(tau: Tau) -> str | None:
    """What to think of a tau, None when all of its interval lies at or above `LOW`."""
    if tau.value < LOW:
        return f"warning: tau is below {LOW}: this fitness says little about plans after recovery"
    if tau.low < LOW:
        return f"note: the interval reaches below {LOW}; more plans would tell"
    return None


def markdown(frame: pd.DataFrame, tau: Tau, command: str) -> str:
    """The table, best fitness first, under what it says."""
    ranks = frame[[BEFORE, AFTER]].rank().astype(int)
    low, high = frame["params_ratio"].min(), frame["params_ratio"].max()
    steps, tokens = int(frame["recovery_steps"].iloc[0]), int(frame["recovery_tokens"].iloc[0])
    lines = [
        *("# Is fitness worth searching on?", ""),
        f"{tau.text}: KL on the same fitness windows before and after {steps} steps ({tokens:,} tokens) of recovery, "
        f"random plans of {low:.3f}x to {high:.3f}x of the block parameters.",
        *(line for note in (warning(tau), _untouched(frame)) if note is not None for line in ("", note)),
        *(
            "",
            "| key | params | fitness kl | rank | recovered | rank | step kept |",
            "|---|---" + "|---:" * 5 + "|",
        ),
    ]
    for at in frame[BEFORE].sort_values(kind="stable").index:
        row, rank = frame.loc[at], ranks.loc[at]
        cells = [f"`{row['key']}`", f"{row['params_ratio']:.3f}x", f"{row[BEFORE]:.4f}", str(rank[BEFORE])]
        cells += [f"{row[AFTER]:.4f}", str(rank[AFTER]), str(row["step_kept"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"Remade by: `{command}`", ""])


def _untouched(frame: pd.DataFrame) -> str | None:
    """Plans that recovery left as they were rank the same before and after, whatever fitness is worth."""
    count = int((frame["step_kept"] == 0).sum())
    if not count:
        return None
    return (
        f"warning: recovery did not improve {count} of {len(frame)} plans on *selection* and left them as they were, "
        "which raises tau; more --steps or a smaller recovery.learning_rate may help"
    )
