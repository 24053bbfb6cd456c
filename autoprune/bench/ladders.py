"""`autoprune bench ladders`: test KL of one uniform allocation with nested and with refit ladders.

Every ladder is built from the same calibration windows, once per calibration seed, and gives weights to the same plan:
the uniform allocation closest to equal fractions. `refit, chosen plan` solves that plan's weights once more in each
other's company, as `export.refit=true` does. Times are processor seconds of one thread.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from autoprune.bench.table import count, parser, publish
from autoprune.cache import Cache
from autoprune.evaluation import Failure
from autoprune.objective import Split
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.pruning.refit import refit_plan
from autoprune.run.calibration import recipe_of
from autoprune.run.parts import Parts, held_out, open_parts
from autoprune.space import Plan
from autoprune.supernet import Ladders, Supernet
from autoprune.uniform import uniform_candidates

COLUMNS = ("ladder", "criterion", "ratio", "seeds", "test KL", "spread", "lower by", "seconds to build")
CHOSEN = ("refit, chosen plan", "obs")
BASE = ("nested", "activation")


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.config import compose
    from autoprune.progress import Progress

    wanted = ["latency.mode=off", f"calibration.tokens={options.tokens}", "evaluator=[divergence]"]
    cfg = compose([f"model={options.model}", f"data={options.data}", *wanted])
    found: dict[tuple[str, str, float], list[tuple[float, float]]] = {}
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
        for seed in range(options.seeds):
            cfg.calibration.seed = seed
            recipe = recipe_of(cfg, parts.adapter.shape, parts.corpus, parts.space_parts)
            for key, value in _seed(parts, recipe, options.ratios).items():
                found.setdefault(key, []).append(value)
    table = _table(found, options.ratios)
    publish("ladders", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("ladders", __doc__)
    found.add_argument("--seeds", type=count, default=3, help="how many calibration seeds, from 0")
    found.add_argument("--tokens", type=int, default=65536, help="calibration tokens")
    found.add_argument("--ratios", type=float, nargs="+", default=[0.5], help="block parameters to dense")
    return found.parse_args(list(args))


def _seed(
    parts: Parts, recipe: LadderRecipe, ratios: Sequence[float]
) -> dict[tuple[str, str, float], tuple[float, float]]:
    """(test KL, seconds to build) by ladder, criterion and ratio, for one calibration seed."""
    space = parts.space(None)
    plans = {r: space.decode(uniform_candidates(space, r)[0]) for r in ratios}
    found = {}
    for ladder, criterion in (BASE, ("nested", "obs"), ("refit", "activation"), ("refit", "obs")):
        chosen = replace(recipe, ladder=ladder, criterion=criterion)
        ladders, seconds = _built(parts, chosen)
        for ratio, plan in plans.items():
            found[ladder, criterion, ratio] = (_kl(parts, ladders, plan), seconds)
    for ratio, plan in plans.items():
        ladders, seconds = _built(parts, replace(recipe, reference=plan))
        found["refit, reference the plan", "obs", ratio] = (_kl(parts, ladders, plan), seconds)
        start = time.thread_time()
        fixed = refit_plan(parts.adapter, plan, recipe)
        found[*CHOSEN, ratio] = (_kl(parts, fixed, plan), time.thread_time() - start)
    return found


def _built(parts: Parts, recipe: LadderRecipe) -> tuple[StoredLadders, float]:
    """Built in a cache of its own, so that the time is that of building."""
    with tempfile.TemporaryDirectory() as scratch:
        start = time.thread_time()
        folder = ladder_folder(parts.adapter, parts.loaded.digest, recipe, Cache(Path(scratch)))
        seconds = time.thread_time() - start
        return StoredLadders(parts.adapter, folder), seconds  # mapped files outlive their folder


def _kl(parts: Parts, ladders: Ladders, plan: Plan) -> float:
    evaluation = parts.evaluation(parts.evaluators, Supernet(parts.adapter, ladders))
    outcome = evaluation.evaluate([plan], held_out(parts.cfg, parts.corpus, Split.TEST))[0]
    return float("nan") if isinstance(outcome, Failure) else outcome.metrics["kl"]


def _table(found: dict[tuple[str, str, float], list[tuple[float, float]]], ratios: Sequence[float]) -> str:
    """One line per ladder and ratio; `lower by` is against nested ladders ranked by activation."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for ratio in ratios:
        base = float(np.mean([kl for kl, _ in found[*BASE, ratio]]))
        for (ladder, criterion, at), values in found.items():
            if at != ratio:
                continue
            kls = np.array([kl for kl, _ in values])
            spread = float(kls.std(ddof=1)) if len(kls) > 1 else 0.0
            cells = [ladder, criterion, f"{ratio:g}x", str(len(kls)), f"{kls.mean():.4f}", f"{spread:.4f}"]
            cells += [f"{1 - kls.mean() / base:.1%}", f"{np.median([s for _, s in values]):.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
