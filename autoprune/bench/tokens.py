"""`autoprune bench tokens`: keep schedules that were searched for, against one keep ratio in every block.

Every rule has its own search within the same share of the dense FLOPs. `uniform` is the best on *selection* of the
plans that hand on the same share in all blocks (what that leaves of the budget goes to the first blocks); `searched` is
the lowest KL on *selection*. KL and accuracy are of all *test* items, means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from autoprune.bench.schedules import Row, rows_of, schedule
from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.progress import Progress
from autoprune.run import pipeline
from autoprune.run.folder import open_ledger
from autoprune.run.parts import open_parts

LONGEST = 64  # tokens of a built-in sentence
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
            cells = _cells([_searched(model, rule, seed, options) for seed in range(options.seeds)])
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


def _searched(model: str, rule: str, seed: int, options: argparse.Namespace) -> tuple[Row, Row, Row]:
    """Dense, uniform and searched of one search."""
    with tempfile.TemporaryDirectory() as place:
        settings = [
            *(f"model={model}", "space=[tokens]", f"space.tokens.rule={rule}", "objectives=[kl,flops]"),
            *(f"constraints={{flops: {options.ratio}x}}", f"seed={seed}", f"out={place}/run", "quiet=true"),
            f"tokens={options.items * _item(model)}",
        ]
        cfg = compose(settings)
        with Progress(quiet=True) as progress:
            path = pipeline.search_only(cfg, "", progress)
            parts = open_parts(cfg, progress)
        with closing(open_ledger(path)) as ledger:
            return rows_of(parts, parts.space(None), ledger, options.ratio)


def _item(model: str) -> int:
    """Tokens of an item."""
    shape = adapter_for(load_model(model).model).shape
    return shape.tokens or LONGEST


def _cells(found: Sequence[tuple[Row, Row, Row]]) -> list[str]:
    def mean(which: int, name: str) -> float:
        chosen = [rows[which] for rows in found]
        return float(np.mean([row.flops if name == "flops" else row.metrics[name] for row in chosen]))

    cells = [f"{mean(0, 'accuracy'):.4f}"]
    for which in (1, 2):
        cells += [
            f"{mean(which, 'flops'):.3f}x",
            f"{mean(which, 'kl'):.4f}",
            f"{mean(which, 'accuracy'):.4f}",
        ]
    lower = 1 - mean(2, "kl") / mean(1, "kl")
    return [*cells, f"{lower:.0%}", schedule(found[0][2].plan)]
