"""`autoprune bench tokens`: keep schedules that were searched for, against one keep ratio in every block.

Every rule has its own search within the same share of the dense FLOPs. `uniform` is the best on *selection* of the
plans that hand on the same share in all blocks (what that leaves of the budget goes to the first blocks); `searched` is
the lowest KL on *selection*. KL and accuracy are of all *test* items, means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from autoprune.bench.table import parser, publish

RULES = ("attention", "cls", "pagerank", "merge")
COLUMNS = (
    *("model", "rule", "dense accuracy", "uniform FLOPs", "uniform KL", "uniform accuracy"),
    *("searched FLOPs", "searched KL", "searched accuracy", "KL lower by", "searched schedule (seed 0, %)"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for model in options.models:
        for rule in options.rules:
            frames = [_searched(model, rule, seed, options) for seed in range(options.seeds)]
            cells = _cells(frames)
            lines.append(f"| {' | '.join([model, rule, *cells])} |")
            print(lines[-1], flush=True)
    publish("tokens", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("tokens", __doc__, model=False)
    found.add_argument("--models", nargs="+", default=["digits-vit", "docs-bert"], help="classifiers")
    found.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    found.add_argument("--ratio", type=float, default=0.7, help="FLOPs to dense")
    found.add_argument("--items", type=int, default=12_000, help="fitness items put through a model")
    found.add_argument("--seeds", type=int, default=3, help="how many searches of each kind")
    return found.parse_args(list(args))


def _searched(model: str, rule: str, seed: int, options: argparse.Namespace) -> pd.DataFrame:
    """The leaderboard of one run."""
    from autoprune.config import compose
    from autoprune.front import Front
    from autoprune.progress import Progress
    from autoprune.run import pipeline

    with tempfile.TemporaryDirectory() as place:
        settings = [
            *(f"model={model}", "space=[tokens]", f"space.tokens.rule={rule}", "objectives=[kl,flops]"),
            *(f"constraints={{flops: {options.ratio}x}}", f"uniform=[{options.ratio}]", f"seed={seed}"),
            *(f"tokens={options.items * _item(model)}", f"out={place}/run", "finalists=16", "quiet=true"),
        ]
        with Progress(quiet=True) as progress:
            return Front(pipeline.start(compose(settings), "", progress)).frame()


def _item(model: str) -> int:
    """Tokens of an item."""
    from autoprune.models import adapter_for
    from autoprune.models.load import load_model

    shape = adapter_for(load_model(model).model).shape
    return shape.tokens or 64


def _cells(frames: Sequence[pd.DataFrame]) -> list[str]:
    rows = [(_row(f, "dense"), _row(f, "uniform"), _row(f, "front")) for f in frames]

    def mean(which: int, column: str) -> float:
        return float(np.mean([row[which][column] for row in rows]))

    kl = mean(1, "kl_test"), mean(2, "kl_test")
    cells = [f"{mean(0, 'accuracy_test'):.4f}"]
    for which in (1, 2):
        cells += [f"{mean(which, 'flops_ratio'):.3f}x", f"{kl[which - 1]:.4f}"]
        cells.append(f"{mean(which, 'accuracy_test'):.4f}")
    return [*cells, f"{1 - kl[1] / kl[0]:.0%}", _schedule(rows[0][2])]


def _row(frame: pd.DataFrame, name: str) -> pd.Series:
    """The row of this kind with the lowest KL on *selection*."""
    rows = frame[frame["name"].str.startswith(name)]
    return rows.sort_values("kl_selection", kind="stable").iloc[0]


def _schedule(row: pd.Series) -> str:
    from autoprune.space import Plan, token_keep

    plan = Plan.from_json(str(row["plan"]))
    keeps: list[Any] = [token_keep(plan.at(b, "attention")) for b in range(plan.blocks)]
    return " ".join("100" if keep is None else str(keep[1]) for keep in keeps)
