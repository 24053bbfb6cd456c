"""`autoprune bench latency`: predicted against measured latency, on whole models that nothing was fitted to.

Probes, the plans of the correction and the held-out plans run in one interleaved loop; times are processor time of
one thread, in the checkpoint's dtype. The busy machine is refused, with exit code 3 and no table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.progress import Progress

if TYPE_CHECKING:
    from autoprune.hardware.table import LatencyTable


def main(args: Sequence[str]) -> None:
    """Measure, print and write the table."""
    from autoprune.run.latency import measured_table
    from autoprune.run.parts import open_parts

    options = _parse(args)
    settings = [f"model={options.model}", f"latency.rounds={options.rounds}", *options.settings]
    with Progress() as progress:
        parts = open_parts(compose(settings), progress)
        table = measured_table(parts, progress, options.plans)
    text = describe(table)
    publish("latency", __doc__, args, text, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("latency", __doc__, model=False)
    found.add_argument("--model", default="docs-llama", help="a built-in name or a folder")
    found.add_argument(
        "settings", nargs="*", metavar="key=value", help="further settings, e.g. latency.batch=4"
    )
    found.add_argument("--plans", type=int, default=32, help="held-out plans")
    found.add_argument("--rounds", type=int, default=21, help="rounds of the measurement")
    return found.parse_args(list(args))


def describe(table: LatencyTable) -> str:
    """Errors per phase, and the circumstances."""
    work = table.workload
    lines = ["| phase | held-out plans | mean error | largest | Spearman | correction | dense (wall clock) |"]
    lines.append("|---|---|---|---|---|---|---|")
    for metric, held in sorted(table.error.items(), reverse=True):
        a, b = table.correction[metric]
        lines.append(
            f"| {metric} | {held.plans} | {held.mean:.2%} | {held.largest:.2%} | {held.rank:.4f} "
            f"| {a:+.3f} ms + {b:.3f} x sum | {table.dense_ms[metric]:.3f} ms ({table.dense_wall_ms[metric]:.3f}) |"
        )
    lines.append(
        f"\nSentinel accepted: every model was left in peace in at least {table.rounds} of {work.rounds} rounds. "
        f"Batch {work.batch}, prefill of {work.prefill_tokens} tokens, decode from {work.context}, {table.dtype}, "
        f"threads {work.threads}. On {table.fingerprint['cpu']}, torch {table.fingerprint['torch']}."
    )
    return "\n".join(lines)
