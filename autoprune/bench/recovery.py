"""`autoprune bench recovery`: test KL before and after short recovery, at half the block parameters.

Two plans: `uniform@0.5x`, and one searched by evopress under `params: 0.5x`; each is recovered with the defaults of
`recovery=distill` once per seed, which orders the train windows. KL is that of the stored weights to the dense model
on held-out windows; time is that of the process, one thread, checks and test figures included.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import work_folder
from autoprune.run.folder import write_json
from autoprune.space import Plan, digest

if TYPE_CHECKING:
    from autoprune.progress import Progress
    from autoprune.run.parts import Parts
    from autoprune.run.recovery import Setting

RATIO = 0.5
COLUMNS = (
    *("model", "plan", "steps", "tokens", "seeds", "test KL before", "after", "spread", "lower by"),
    *("perplexity before", "perplexity after", "dense", "time"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts

    settings = [] if options.steps is None else [f"recovery.steps={options.steps}"]
    given = [f"model={options.model}", f"data={options.data}", "recovery=distill", *settings]
    cfg = compose([*given, "latency.mode=off"])
    with Progress() as progress:
        parts = open_parts(cfg, progress)
        rows = _rows(parts, options, progress)
    table = markdown(pd.DataFrame(rows))
    publish("recovery", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("recovery", __doc__)
    found.add_argument("--seeds", type=count, default=3, help="how many seeds, from 0")
    found.add_argument("--steps", type=int, help="of a recovery, instead of the default")
    found.add_argument("--tokens", type=float, default=5e5, help="of the search; 0 leaves it out")
    found.add_argument(
        "--work", default="results/bench-recovery", help="where the search and states are kept"
    )
    return found.parse_args(list(args))


def _rows(parts: Parts, options: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    from autoprune.run.recovery import recovery_of, setting_of

    recovery = recovery_of(parts.cfg)
    assert recovery is not None, "main asks for one"
    setting = setting_of(parts, recovery)
    dense = setting.scoring.score(parts.loaded.model, setting.test)["perplexity"]
    work = work_folder(options.work, options.model, options.data, options.tokens, options.steps)
    rows = []
    for name, plan in _plans(parts, options, work).items():
        for seed in range(options.seeds):
            row = _recover(parts, replace(setting, seed=seed), plan, work / f"{plan.key}-{seed}", progress)
            rows.append({"model": Path(options.model).name, "plan": name, "dense": dense, **row})
            progress.say(f"{name}, seed {seed}: test kl {row['before']:.4f} -> {row['after']:.4f}")
    return rows


def _plans(parts: Parts, options: argparse.Namespace, work: Path) -> dict[str, Plan]:
    """The best uniform plan on selection, as in every run's leaderboard, and a searched one."""
    from autoprune.objective import Split
    from autoprune.run.parts import held_out
    from autoprune.uniform import uniform_candidates

    space = parts.space(None)
    plans = [space.decode(c) for c in uniform_candidates(space, RATIO)]
    selection = held_out(parts.cfg, parts.corpus, Split.SELECTION)
    scores: list[Any] = parts.evaluation(parts.evaluators).evaluate(plans, selection)
    best = min(zip(scores, plans, strict=True), key=lambda pair: float(pair[0].metrics["kl"]))[1]
    found = {f"uniform@{RATIO:g}x": best}
    if options.tokens:
        found[f"evopress, {options.tokens:,.0f} tokens"] = _searched(options, work / "search")
    return found


def _searched(options: argparse.Namespace, folder: Path) -> Plan:
    from autoprune.api import resume, search
    from autoprune.front import Front
    from autoprune.ledger import FILE

    if (folder / "best").is_dir():
        front = Front(folder)
    elif (folder / FILE).is_file():
        front = resume(folder)
    else:
        front = search(
            options.model,
            data=options.data,
            search="evopress",
            constraints={"params": f"{RATIO:g}x"},
            tokens=options.tokens,
            out=folder,
            settings=["latency.mode=off", "quiet=true", f"uniform=[{RATIO:g}]"],
        )
    return front.pick(params=RATIO).plan


def _recover(parts: Parts, setting: Setting, plan: Plan, folder: Path, progress: Progress) -> dict[str, Any]:
    """The figures of one recovery; they are kept, and so is its state: an interrupted benchmark goes on."""
    import torch

    from autoprune.run.recovery import recover

    kept = folder.with_name(f"{folder.name}-{digest(asdict(setting.settings))[:8]}.json")
    if kept.is_file():
        return dict(json.loads(kept.read_text(encoding="utf-8")))
    started = time.process_time()
    outcome = recover(parts.build(plan, dtype=torch.float32), parts.loaded.dtype, setting, folder, progress)
    spent = time.process_time() - started
    shutil.rmtree(folder, ignore_errors=True)
    done, before, after = outcome.distilled, outcome.before, outcome.after
    row = {
        **{"steps": done.steps, "tokens": done.tokens, "before": before["kl"], "after": after["kl"]},
        **{"ppl_before": before["perplexity"], "ppl_after": after["perplexity"], "seconds": spent},
        "kept": done.kept,
    }
    write_json(kept, row)
    return row


def markdown(rows: pd.DataFrame) -> str:
    """One line per plan: means over seeds, the spread (standard deviation), and the change of the means."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for (model, plan), group in rows.groupby(["model", "plan"], sort=False):
        mean = group.drop(columns=["model", "plan"]).mean()
        spread = group["after"].std(ddof=1) if len(group) > 1 else 0.0
        cells = [
            *(str(model), str(plan), f"{mean['steps']:.0f}", f"{mean['tokens']:,.0f}", str(len(group))),
            *(f"{mean['before']:.4f}", f"{mean['after']:.4f}", f"{spread:.4f}"),
            *(f"{1 - mean['after'] / mean['before']:.1%}", f"{mean['ppl_before']:.2f}"),
            *(f"{mean['ppl_after']:.2f}", f"{mean['dense']:.2f}", f"{mean['seconds']:.0f} s"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
