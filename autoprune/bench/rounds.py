"""`autoprune bench rounds`: one plan at a bound, refit for itself, from searches with and without rebuilt ladders.

Every variant is a search with settings of its own, run with the same tokens for every seed. Its finalists are compared
on *selection*, the best is solved once more in its own company as `autoprune export --refit` does, and that is kept if
KL on *selection* falls. *found* is what the ladders give, *refit* what the checkpoint has. KL is of 64 *test* windows
unless the settings say otherwise; no choice is made by it. Runs are kept under `--work`: what is there is read.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import Row, Work
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.objective import Split
from autoprune.progress import Progress
from autoprune.run import folder
from autoprune.run.choosing import shared_of
from autoprune.run.finals import Entry
from autoprune.run.pipeline import Run, open_run, search_only
from autoprune.run.ranking import ranked
from autoprune.run.refitting import Refit, refit_chosen
from autoprune.run.supernets import parts_with
from autoprune.run.targets import TargetsDriver, driver_of

VARIANTS = ["auto", "rounds:calibration.rounds=[1,1,1]:calibration.follow=2"]
COLUMNS = ("variant", "tokens", "seeds", "params", "found, selection", "found, test")
LAST = ("refit, selection", "refit, test", "refit, test, of each seed")


@dataclass(frozen=True)
class Variant:
    """A search under the name that the table shows."""

    name: str
    settings: tuple[str, ...]


def main(args: Sequence[str]) -> None:
    """Search, refit, print and write the table."""
    options = _parse(args)
    variants = [_variant(text) for text in options.variants]
    work = Work(options.work, options.model, [_shared(options), sorted(options.settings)])
    rows: dict[str, list[Row]] = {v.name: [] for v in variants}
    for seed in range(options.first, options.first + options.seeds):
        for variant in variants:
            rows[variant.name].append(_row(options, work, variant, seed))
            print(variant.name, seed, {k: round(v, 4) for k, v in rows[variant.name][-1].items()}, flush=True)
    columns = (*COLUMNS, *LAST)
    lines = [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
    lines += [_line(name, found) for name, found in rows.items()]
    publish("rounds", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("rounds", __doc__)
    found.add_argument("--variants", nargs="+", default=VARIANTS, metavar="NAME[:key=value…]")
    found.add_argument("--ratio", type=float, default=0.5, help="block parameters to dense")
    found.add_argument("--tokens", type=float, default=2.4e6, help="fitness tokens of a search")
    found.add_argument("--calibration", type=int, default=65_536, help="calibration tokens")
    found.add_argument("--finalists", type=int, default=8, help="plans of a search, on selection")
    found.add_argument("--seeds", type=count, default=5, help="how many seeds")
    found.add_argument("--first", type=int, default=0, help="the first of them")
    found.add_argument("--settings", nargs="*", default=[], metavar="key=value", help="of all searches")
    found.add_argument("--work", default="results/bench-rounds", help="where the runs are kept")
    return found.parse_args(list(args))


def _variant(text: str) -> Variant:
    name, *settings = text.split(":")
    if bad := next((s for s in settings if "=" not in s), None):
        raise SettingError(f"--variants: {bad!r} in {text!r} is not of the form KEY=VALUE")
    return Variant(name, tuple(settings))


def _shared(options: argparse.Namespace) -> list[str]:
    return [
        f"model={options.model}",
        f"data={options.data}",
        f"constraints={{params: {options.ratio:g}x}}",
        f"tokens={options.tokens:g}",
        f"calibration.tokens={options.calibration}",
        f"finalists={options.finalists}",
        *("latency.mode=off", "quiet=true"),
        *options.settings,
    ]


def _row(options: argparse.Namespace, work: Work, variant: Variant, seed: int) -> Row:
    path = (work.folder / variant.name / f"seed{seed}").absolute()
    words = [*_shared(options), *variant.settings, f"seed={seed}", f"out={path}", "uniform=[]"]
    return work.row(f"{variant.name}-{seed}", lambda: _measured(path, words))


def _measured(path: Path, words: Sequence[str]) -> dict[str, float]:
    cfg = compose(words)
    with Progress(quiet=True) as progress:
        if not _searched(path):
            search_only(cfg, "autoprune " + shlex.join(words), progress)
        run = open_run(path, cfg, progress)
        with closing(folder.open_ledger(path)) as ledger:
            rows = [e for e in ranked(run, ledger, _driver(run)) if e.name == "front"]
            best = min(rows, key=lambda e: e.quality(Split.SELECTION))
            return {**_figures(run, ledger, best), "tokens": float(ledger.tokens())}


def _searched(path: Path) -> bool:
    if not holds_run(path / FILE):
        return False
    with closing(Ledger.open(path / FILE)) as ledger:
        return bool(ledger.events("searched"))


def _driver(run: Run) -> TargetsDriver:
    windows, allocations = run.parts.corpus.count(Split.FITNESS), run.parts.allocations()
    return driver_of(shared_of(run.cfg, run.space, run.objectives, run.targets, windows, allocations))


def _figures(run: Run, ledger: Ledger, entry: Entry) -> dict[str, float]:
    parts = parts_with(run.parts, ledger, entry.finalist.ladders, run.progress)
    again: Refit = refit_chosen(replace(run, parts=parts), entry.plan)
    return {
        "params": entry.finalist.costs["params"] / run.space.cost(run.space.dense)["params"],
        "found_selection": entry.quality(Split.SELECTION),
        "found_test": entry.quality(Split.TEST),
        "refit_selection": min(again.before, again.after),
        "refit_test": again.metrics["kl"],
    }


def _line(name: str, rows: Sequence[Mapping[str, float]]) -> str:
    names = ("params", "found_selection", "found_test", "refit_selection", "refit_test")
    mean = {n: float(np.mean([row[n] for row in rows])) for n in names}
    spread = float(np.std([row["refit_test"] for row in rows], ddof=1)) if len(rows) > 1 else 0.0
    tokens = f"{np.mean([row['tokens'] for row in rows]):,.0f}"
    each = ", ".join(f"{row['refit_test']:.4f}" for row in rows)
    return (
        f"| {name} | {tokens} | {len(rows)} | {mean['params']:.4f}x | {mean['found_selection']:.4f} | "
        f"{mean['found_test']:.4f} | {mean['refit_selection']:.4f} | {mean['refit_test']:.4f}"
        f" ± {spread:.4f} | {each} |"
    )
