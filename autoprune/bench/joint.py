"""`autoprune bench joint`: width, depth and weight sparsity searched together, against each alone, at equal bytes.

Every space is searched by `auto` at every bound on `bytes` with the same fitness tokens; `structured` varies KV groups
and FFN widths down to zero, so width and depth at once. Masked matrices count packed, index included. Of every search
the plan of lowest selection KL is taken: means over seeds with their standard deviation; intervals, 95 %, are of a
bootstrap over seeds and the same test windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.bench.table import count, parser, publish, spread
from autoprune.bench.work import work_folder
from autoprune.objective import Array, Split

SPACES: Mapping[str, tuple[str, ...]] = {
    "structured": ("space=[structured]",),
    "sparsity": ("space=[sparsity]",),
    "joint": ("space=[structured,sparsity]",),
}
JOINT = "joint"
COLUMNS = ("bound", "space", "test KL", "to best single", "bytes", "params", "flops", "KV", "tokens")


@dataclass(frozen=True)
class Found:
    """The chosen plan of one search: its row of the leaderboard, and its KL on each test window."""

    row: Mapping[str, Any]
    test: Array


def main(args: Sequence[str]) -> None:
    """Search, print and write the table."""
    options = _parse(args)
    places = [(target, space) for target in options.targets for space in options.spaces]
    found = {p: [_found(options, *p, seed) for seed in range(options.seeds)] for p in places}
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for target in options.targets:
        of = {space: found[target, space] for space in options.spaces}
        lines += [_line(target, space, of) for space in options.spaces]
    told = f"{options.tokens:,.0f} tokens a search, {options.seeds} seeds a row"
    lines += ["", f"{Path(options.model).name}, {told}."]
    publish("joint", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("joint", __doc__)
    found.add_argument("--tokens", type=float, default=333e3, help="fitness tokens of each search")
    found.add_argument("--targets", type=float, nargs="+", default=[0.7, 0.5, 0.35], help="bytes to dense")
    found.add_argument("--spaces", nargs="+", choices=SPACES, default=list(SPACES), help="what is searched")
    found.add_argument(
        "--set", nargs="*", default=[], metavar="key=value", help="further settings of every search"
    )
    found.add_argument("--seeds", type=count, default=3, help="how many searches of each kind, from seed 0")
    found.add_argument("--work", default="results/bench-joint", help="where the runs are kept")
    return found.parse_args(list(args))


def _found(options: argparse.Namespace, target: float, space: str, seed: int) -> Found:
    from autoprune.run.folder import load_settings

    made = work_folder(options.work, options.model, options.data, options.tokens, options.set)
    folder = made / f"{space}-{target:g}-{seed}"
    row = _searched(options, target, space, seed, folder)
    return Found(row, _tested(load_settings(folder, trust=False), str(row["plan"])))


def _searched(
    options: argparse.Namespace, target: float, space: str, seed: int, folder: Path
) -> Mapping[str, Any]:
    """The plan of lowest selection KL within the bound, of a run that is made, or gone on with, where it is missing."""
    from autoprune.api import resume, run_config
    from autoprune.config import compose
    from autoprune.front import Front
    from autoprune.ledger import FILE
    from autoprune.run.outputs import FACTS

    words = [f"model={options.model}", f"data={options.data}", f"out={folder}", f"tokens={options.tokens}"]
    words += [*SPACES[space], f"constraints={{bytes: {target:g}x}}", "objectives=[kl,bytes]"]
    words += [
        f"seed={seed}",
        "latency.mode=off",
        "quiet=true",
        "finalists=8",
        "uniform=[]",
        *(word for word in options.set if _concerns(word, space)),
    ]
    if not (folder / FILE).is_file():
        run_config(compose(words), "autoprune " + " ".join(words))
    elif not (folder / FACTS).is_file():
        resume(folder)
    frame = Front(folder).frame()
    within = frame[(frame["name"] != "dense") & (frame["bytes_ratio"] <= target + 1e-9)]
    return dict(within.sort_values("kl_selection").iloc[0])


def _concerns(word: str, space: str) -> bool:
    """A setting of a group concerns the spaces that have it."""
    group = word.removeprefix("space.").partition(".")[0]
    return not word.startswith("space.") or group in SPACES[space][0]


def _tested(cfg: Any, plan: str) -> Array:
    """KL of each test window."""
    from autoprune.evaluation import Failure
    from autoprune.progress import Progress
    from autoprune.run.parts import held_out, open_parts
    from autoprune.space import Plan

    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
    fidelity = held_out(cfg, parts.corpus, Split.TEST)
    score = parts.evaluation(parts.evaluators).evaluate([Plan.from_json(plan)], fidelity)[0]
    assert not isinstance(score, Failure), score
    return score.per_window["kl"]


def _line(target: float, space: str, of: Mapping[str, Sequence[Found]]) -> str:
    from autoprune.bench.search.statistics import ratio

    kls = {name: np.stack([f.test for f in found]) for name, found in of.items()}  # [seeds, windows]
    singles = [name for name in of if name != JOINT]
    against = ""
    if space == JOINT and singles:
        best = min(singles, key=lambda name: float(kls[name].mean()))
        against = f"{ratio(kls[space], kls[best]).text} ({best})"
    rows = [found.row for found in of[space]]
    costs = ("bytes", "params", "flops", "kv")
    shares = [f"{np.mean([row[f'{cost}_ratio'] for row in rows]):.3f}" for cost in costs]
    tokens = f"{np.mean([row['tokens'] for row in rows]):,.0f}"
    cells = [f"{target:g}x", space, spread(kls[space].mean(axis=1).tolist()), against, *shares, tokens]
    return f"| {' | '.join(cells)} |"
