"""`autoprune bench precision`: a search's evaluations with products in bf16, against fp32.

The plans are a stage of evopress at 0.6x; both precisions see the same windows, and take turns on one thread; ratios
are of thread time, median and range. `rounding` is the KL of the dense plan against the dense model: what bf16 alone
does. `tau` is Kendall's rank correlation of the plans' KLs in one precision with those in the other: whether a search
would choose alike. The wide model has random weights, so its plans' KLs mean nothing, and its tau is left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from autoprune.bench.stage import batched, measured, stage
from autoprune.bench.streaming import make
from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.objective import Fidelity, Split
from autoprune.precision import WORDS
from autoprune.progress import Progress
from autoprune.run.parts import Parts, open_parts

COLUMNS = "model", "hidden", "fp32, s", "bf16, s", "times as fast", "range", "rounding", "tau"


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    lines = [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    given = [f"data={options.data}", "latency.mode=off", "evaluator=[divergence]"]
    given += ["calibration.ladder=nested", "calibration.tokens=4096"]  # the times are those of any ladders
    for model in options.models:
        lines.append(_row(_opened([f"model={model}", *given]), options))
    if options.wide:
        with tempfile.TemporaryDirectory(prefix="autoprune-wide-") as folder:
            words = [*make(Path(folder), options.wide, blocks=2, sequences=8), "evaluator=[divergence]"]
            lines.append(_row(_opened(words), options, "random weights"))
    lines += ["", f"{options.windows} windows, {options.rounds} rounds; on {_cpu()}."]
    publish("precision", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("precision", __doc__)
    found.add_argument("--models", nargs="+", default=["docs-llama"], help="built-in names or folders")
    found.add_argument("--wide", type=int, default=1024, help="hidden size of a random model beside; 0: none")
    found.add_argument("--windows", type=int, default=4, help="of the stage")
    found.add_argument("--rounds", type=int, default=5, help="of the measurement")
    return found.parse_args(list(args))


def _opened(words: Sequence[str]) -> Parts:
    with Progress(quiet=True) as progress:
        return open_parts(compose(list(words)), progress)


def _row(parts: Parts, options: argparse.Namespace, name: str = "") -> str:
    """One model in both precisions."""
    from scipy.stats import kendalltau

    exact, rounded = (parts.evaluation(parts.evaluators, precision=word) for word in WORDS)
    plans, fidelity = stage(parts, exact), Fidelity(Split.FITNESS, (0, options.windows))
    kls = [batched(evaluation, plans, fidelity) for evaluation in (exact, rounded)]
    ways = [partial(batched, evaluation, plans, fidelity) for evaluation in (exact, rounded)]
    _, thread = measured(ways, options.rounds)
    ratios, seconds = thread[:, 0] / thread[:, 1], np.median(thread, axis=0)
    rounding = batched(rounded, [parts.dense_plan()], fidelity)[0]
    tau = "" if name else f"{kendalltau(*kls).statistic:.3f}"
    model = name or Path(parts.loaded.name).name
    return (
        f"| {model} | {parts.adapter.shape.hidden} | {seconds[0]:.2f} | {seconds[1]:.2f} | "
        f"{np.median(ratios):.2f} | {ratios.min():.2f} to {ratios.max():.2f} | {rounding:.1e} | {tau} |"
    )


def _cpu() -> str:
    from autoprune.hardware.fingerprint import environment

    return str(environment()["cpu"])
