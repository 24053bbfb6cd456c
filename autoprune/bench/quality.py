"""The table of `autoprune bench decode --quality MODEL`: what blocks cost a trained model in quality."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import MeasurementError

if TYPE_CHECKING:
    from autoprune.run.parts import Parts
    from autoprune.space import Plan
    from autoprune.supernet import Ladders

PATTERN, METHOD = "8x2", "sparsegpt"
GONE = (50, 70, 90)
DENSE = "dense"


def quality_lines(options: argparse.Namespace) -> list[str]:
    """KL and perplexity on *test* of the model with the same share of blocks gone in every matrix of every block."""
    from autoprune.bench.criteria import ladders_of, thinned
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.pruning.ladders import StoredLadders
    from autoprune.pruning.masks.build import masked
    from autoprune.run.parts import open_parts

    words = [f"model={options.quality}", f"data={options.data}", "evaluator=[divergence,perplexity]"]
    words += ["latency.mode=off", f"calibration.tokens={options.tokens}", f"test_windows={options.windows}"]
    with Progress(quiet=True) as progress:
        parts = open_parts(compose([*words, "calibration.ladder=nested"]), progress)
        whole = ladders_of(parts, parts.recipe)
        assert isinstance(whole, StoredLadders)
        ladders = masked(whole, parts.adapter, parts.loaded.digest, parts.recipe, parts.cache, METHOD)
        plans: dict[str, Plan] = {DENSE: parts.dense_plan()}
        plans |= {f"{PATTERN} blocks, {gone} % gone": thinned(parts, PATTERN, 100 - gone) for gone in GONE}
        found = {name: _scores(parts, ladders, plan) for name, plan in plans.items()}
    name = Path(str(options.quality)).name
    lines = [
        f"{name}, a trained model; masks by {METHOD} ({options.tokens:,} calibration tokens), the same share of every "
        f"matrix inside blocks, nothing searched, nothing recovered; {options.windows} test windows of "
        f"{parts.cfg.window} tokens.",
        "",
    ]
    lines += ["| model | test KL to dense | test perplexity | to dense |", "|---|---|---|---|"]
    return [*lines, *(_line(name, of, found[DENSE]) for name, of in found.items())]


def _scores(parts: Parts, ladders: Ladders, plan: Plan) -> Mapping[str, float]:
    from autoprune.evaluation import Failure
    from autoprune.objective import Split
    from autoprune.run.parts import held_out
    from autoprune.supernet import Supernet

    evaluation = parts.evaluation(parts.evaluators, Supernet(parts.adapter, ladders))
    (outcome,) = evaluation.evaluate([plan], held_out(parts.cfg, parts.corpus, Split.TEST))
    if isinstance(outcome, Failure):
        raise MeasurementError(f"the masked model fails: {outcome.reason}")
    return outcome.metrics


def _line(name: str, of: Mapping[str, float], dense: Mapping[str, float]) -> str:
    ratio = of["perplexity"] / dense["perplexity"]
    return f"| {name} | {abs(of['kl']):.4f} | {of['perplexity']:.2f} | {ratio:.2f} |"
