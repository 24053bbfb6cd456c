"""`autoprune bench divergence`: how near the KL that searches use is to that over the whole vocabulary.

Uniform plans at some shares of the block parameters on test windows. `bin` is the error of top-k tokens and a bin for
all others, `samples` that with a sample of the bin's tokens (the default); both of the mean and of the worst window.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import parser, publish

if TYPE_CHECKING:
    from autoprune.evaluation import Array, WindowEvaluator
    from autoprune.run.parts import Parts
    from autoprune.space import Plan

COLUMNS = ("share", "full KL", "bin", "worst window", "samples", "worst window")


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import instantiate, open_parts
    from autoprune.uniform import uniform_candidates

    words = [f"model={options.model}", f"data={options.data}", f"calibration.tokens={options.tokens}"]
    words += [f"test_windows={options.windows}", "latency.mode=off", "evaluator=[divergence,full_divergence]"]
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg := compose(words), progress)
    space = parts.space(None)
    plans = [space.decode(uniform_candidates(space, ratio)[0]) for ratio in options.ratios]
    kinds = [instantiate(cfg.evaluator[name]) for name in ("full_divergence", "divergence", "divergence")]
    kinds[1].tail_samples = 0
    full, binned, sampled = (_kls(parts, kind, plans) for kind in kinds)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for at, ratio in enumerate(options.ratios):
        cells = [f"{ratio:g}x", f"{full[at].mean():.4f}"]
        for found in (binned, sampled):
            each = found[at] / full[at] - 1
            cells += [f"{found[at].mean() / full[at].mean() - 1:+.2%}", f"{each[np.abs(each).argmax()]:+.2%}"]
        lines.append(f"| {' | '.join(cells)} |")
    told = (
        f"{options.model}; {options.windows} test windows, {parts.adapter.shape.vocabulary:,} tokens in the "
    )
    told += f"vocabulary, {kinds[2].top_k} told apart, {kinds[2].tail_samples} sampled."
    publish("divergence", __doc__, args, "\n".join([*lines, "", told]), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("divergence", __doc__)
    found.add_argument("--ratios", type=float, nargs="+", default=[0.95, 0.8, 0.6, 0.4, 0.2], help="shares")
    found.add_argument("--tokens", type=int, default=16384, help="calibration tokens")
    found.add_argument("--windows", type=int, default=64, help="test windows")
    return found.parse_args(list(args))


def _kls(parts: Parts, evaluator: WindowEvaluator, plans: Sequence[Plan]) -> list[Array]:
    """Of every plan the KL of each test window."""
    from autoprune.evaluation import Failure
    from autoprune.objective import Split
    from autoprune.run.parts import held_out

    scores = parts.evaluation([evaluator]).evaluate(plans, held_out(parts.cfg, parts.corpus, Split.TEST))
    return [next(iter(s.per_window.values())) for s in scores if not isinstance(s, Failure)]
