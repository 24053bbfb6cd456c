"""`autoprune bench tokens`: keep schedules that were searched for, against one keep ratio in every block.

Every rule has its own search within the same share of the dense FLOPs. `uniform` is the best on *selection* of the
plans that hand on the same share in all blocks (what that leaves of the budget goes to the first blocks); `searched` is
the lowest KL on *selection*. KL and accuracy are of *test* items, means over searches with different seeds and their
standard deviation; points are of accuracy, below the dense model and above the uniform plan.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from autoprune.bench.schedules import Row, rows_of, schedule
from autoprune.bench.table import count, parser, publish, spread
from autoprune.config import compose
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.progress import Progress
from autoprune.run import pipeline
from autoprune.run.folder import open_ledger
from autoprune.run.parts import open_parts

LONGEST = 64  # tokens of a built-in sentence
RULES = ("attention", "cls", "pagerank", "merge")
SEARCH = tuple(f"search.{n}" for n in ("windows=64", "first=32", "chunk=32", "cap=128"))  # windows are items
COLUMNS = (
    *("model", "rule", "dense accuracy", "uniform FLOPs", "uniform KL", "uniform accuracy"),
    *("searched FLOPs", "searched KL", "searched accuracy", "KL lower by", "points below dense"),
    *("points above uniform", "searched schedule (seed 0, %)"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    data = dict(zip(options.models, options.data * len(options.models), strict=False))
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for model in options.models:
        for rule in options.rules:
            found = [_searched(model, data[model], rule, seed, options) for seed in range(options.seeds)]
            lines.append(f"| {' | '.join([Path(model).name, rule, *_cells(found)])} |")
            print(lines[-1], flush=True)
    publish("tokens", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("tokens", __doc__, model=False)
    found.add_argument("--models", nargs="+", default=["digits-vit", "docs-bert"], help="classifiers")
    found.add_argument("--data", nargs="+", default=["auto"], help="of each model, or of all")
    found.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    found.add_argument("--ratio", type=float, default=0.7, help="FLOPs to dense")
    found.add_argument("--items", type=int, default=12_000, help="fitness items put through a model")
    found.add_argument("--judged", type=int, default=3000, help="selection items, and test items, at most")
    found.add_argument("--seeds", type=count, default=3, help="how many searches of each kind")
    found.add_argument("--set", nargs="*", default=list(SEARCH), metavar="key=value", help="further settings")
    options = found.parse_args(list(args))
    if len(options.data) not in (1, len(options.models)):
        found.error(
            f"--data names {len(options.data)}, --models {len(options.models)}; one each, or one for all"
        )
    return options


def _searched(
    model: str, data: str, rule: str, seed: int, options: argparse.Namespace
) -> tuple[Row, Row, Row]:
    """Dense, uniform and searched of one search."""
    with tempfile.TemporaryDirectory() as place:
        settings = [
            *(f"model={model}", f"data={data}", "space=[tokens]", f"space.tokens.rule={rule}"),
            "objectives=[kl,flops]",
            *(f"constraints={{flops: {options.ratio}x}}", f"seed={seed}", f"out={place}/run", "quiet=true"),
            f"tokens={options.items * _item(model)}",
            *(f"selection_windows={options.judged}", f"test_windows={options.judged}"),
            *options.set,
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
    dense, uniform, ours = zip(*found, strict=True)

    def of(rows: Sequence[Row], metric: str) -> list[float]:
        return [row.metrics[metric] for row in rows]

    def points(over: Sequence[Row], under: Sequence[Row]) -> str:
        pairs = zip(of(over, "accuracy"), of(under, "accuracy"), strict=True)
        return spread([100 * (a - b) for a, b in pairs], 2)

    cells = [f"{dense[0].metrics['accuracy']:.4f}"]
    for rows in (uniform, ours):
        cells += [f"{sum(row.flops for row in rows) / len(rows):.3f}x"]
        cells += [spread(of(rows, metric)) for metric in ("kl", "accuracy")]
    lower = 1 - sum(of(ours, "kl")) / sum(of(uniform, "kl"))
    return [*cells, f"{lower:.0%}", points(dense, ours), points(ours, uniform), schedule(ours[0].plan)]
