"""`autoprune bench prefill`: keep schedules for prompt tokens that were searched for, against one ratio in every block.

`uniform` is the best on *selection* of the plans that hand on the same share of a prompt in all blocks (what that
leaves of the FLOPs goes to the first blocks); `searched` has the lowest KL on *selection*. KL and perplexity are those
of *test* windows, on what follows the prompt, means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing

import numpy as np

from autoprune.bench.schedules import Row, rows_of, schedule
from autoprune.bench.table import count, parser, publish
from autoprune.config import compose
from autoprune.progress import Progress
from autoprune.run import pipeline
from autoprune.run.folder import open_ledger
from autoprune.run.parts import open_parts

LADDERS = ("calibration.ladder=nested", "calibration.tokens=8192")  # no weights change: any will do
COLUMNS = (
    *("FLOPs bound", "dense perplexity", "uniform FLOPs", "uniform KL", "uniform perplexity"),
    *("searched FLOPs", "searched KL", "searched perplexity", "KL lower by", "searched schedule (seed 0, %)"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for ratio in options.ratios:
        cells = _cells([_searched(options, ratio, seed) for seed in range(options.seeds)])
        lines.append(f"| {' | '.join([f'{ratio:g}x', *cells])} |")
        print(lines[-1], flush=True)
    publish("prefill", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("prefill", __doc__)
    found.add_argument("--ratios", nargs="+", type=float, default=[0.7, 0.5], help="FLOPs to dense")
    found.add_argument("--tokens", type=float, default=3e5, help="tokens of each search")
    found.add_argument("--seeds", type=count, default=3, help="how many searches of each kind")
    found.add_argument("--settings", nargs="*", default=[], help="further settings of the searches")
    return found.parse_args(list(args))


def _searched(options: argparse.Namespace, ratio: float, seed: int) -> tuple[Row, Row, Row]:
    """Dense, uniform and searched of one search."""
    with tempfile.TemporaryDirectory() as place:
        settings = [
            *(f"model={options.model}", f"data={options.data}", "space=[prefill_tokens]"),
            *("objectives=[kl,flops]", f"constraints={{flops: {ratio}x}}", f"tokens={options.tokens}"),
            *(f"seed={seed}", f"out={place}/run", "latency.mode=off", "quiet=true", *LADDERS),
        ]
        cfg = compose([*settings, *options.settings])
        with Progress(quiet=True) as progress:
            path = pipeline.search_only(cfg, "", progress)
            parts = open_parts(cfg, progress)
        with closing(open_ledger(path)) as ledger:
            return rows_of(parts, parts.space(None), ledger, ratio)


def _cells(found: Sequence[tuple[Row, Row, Row]]) -> list[str]:
    def mean(which: int, name: str) -> float:
        return float(np.mean([rows[which].metrics[name] for rows in found]))

    cells = [f"{mean(0, 'perplexity'):.3f}"]
    for which in (1, 2):
        flops = float(np.mean([rows[which].flops for rows in found]))
        cells += [f"{flops:.3f}x", f"{mean(which, 'kl'):.4f}", f"{mean(which, 'perplexity'):.3f}"]
    return [*cells, f"{1 - mean(2, 'kl') / mean(1, 'kl'):.0%}", schedule(found[0][2].plan)]
