"""`autoprune bench tasks`: what evaluating a plan on tasks costs beside running the model on their padded batches.

The plan halves every FFN. `forward` is the thread time of the supernet on the same padded batches, nothing read off;
`evaluation` that of the whole: prompts rendered, tokenised and padded before, log-likelihoods, lm-eval's metrics. Both
take turns; times and their ratio are medians over rounds.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

from autoprune.bench.table import parser, publish

if TYPE_CHECKING:
    from autoprune.run.parts import Parts
    from autoprune.space import Plan

COLUMNS = ("task", "items", "requests", "tokens, padded", "forward ms", "evaluation ms", "ratio")


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from hydra.utils import get_class

    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts
    from autoprune.space import Plan

    words = [f"model={options.model}", f"data={options.data}", "calibration.tokens=4096", "latency.mode=off"]
    with Progress(quiet=True) as progress:
        parts = open_parts(compose([*words, "calibration.ladder=nested"]), progress)
    shape = parts.adapter.shape
    plan = Plan.of([(shape.kv_groups, shape.ffn // 2)] * shape.blocks)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name in options.tasks:
        evaluator: Any = get_class("evaluators.tasks.Tasks")([name], options.include, options.limit)
        evaluator.bind(parts.context())
        lines.append(_line(parts, evaluator, plan, name, options.rounds))
    told = f"{options.model}, every FFN halved; one thread, {options.rounds} rounds."
    publish("tasks", __doc__, args, "\n".join([*lines, "", told]), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("tasks", __doc__)
    found.add_argument("--tasks", nargs="+", required=True, metavar="NAME", help="tasks of lm-eval")
    found.add_argument("--include", metavar="FOLDER", help="a folder of task YAMLs")
    found.add_argument("--limit", type=int, default=200, help="items of each task")
    found.add_argument("--rounds", type=int, default=9, help="how often both are timed")
    return found.parse_args(list(args))


def _line(parts: Parts, evaluator: Any, plan: Plan, name: str, rounds: int) -> str:
    from autoprune.evaluation import Failure

    def forward() -> None:
        for batch in evaluator.batches:
            parts.supernet.run([plan], batch.inputs, lambda index, logits: None)

    def whole() -> None:
        assert not isinstance(evaluator.evaluate(parts.supernet, [plan])[0], Failure)

    pairs = [(_seconds(forward), _seconds(whole)) for _ in range(rounds + 1)][1:]
    bare, full = (1e3 * median(column) for column in zip(*pairs, strict=True))
    ratio = median(b / a for a, b in pairs)
    requests = sum(len(batch.ids) for batch in evaluator.batches)
    cells = [name, str(evaluator.counts[name]), f"{requests:,}", f"{evaluator.price():,}"]
    return f"| {' | '.join([*cells, f'{bare:.1f}', f'{full:.1f}', f'{ratio:.3f}'])} |"


def _seconds(call: Callable[[], None]) -> float:
    start = time.thread_time()
    call()
    return time.thread_time() - start
