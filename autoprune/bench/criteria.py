"""`autoprune bench criteria`: test KL by criterion and kept share, allocated uniformly.

Single weights: every matrix of every block keeps the same share, unstructured or N:M; `sparsegpt` updates what stays,
all others only mask (`obs` with the very score that SparseGPT starts from). Units: the uniform plan closest to equal
fractions of KV groups and FFN widths, on nested ladders (what stays is as it was) and on refit ones. Mean and spread
over calibration seeds, each with windows of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import parser, publish

if TYPE_CHECKING:
    from autoprune.pruning.recipe import LadderRecipe
    from autoprune.run.parts import Parts
    from autoprune.space import Plan
    from autoprune.supernet import Ladders

COMPARED = ("sparsegpt", "obs", "wanda", "magnitude")  # also where half is kept, in patterns
HALVES = {"0.5": ("unstructured", 50), "4:8": ("8", 4), "2:4": ("4", 2)}
REFIT = ("obs", "activation", "magnitude")
Key = tuple[str, str, str]  # what is ranked, criterion, column
Found = dict[Key, list[float]]


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.calibration import recipe_of
    from autoprune.run.parts import open_parts

    settings = [f"calibration.tokens={options.tokens}", f"test_windows={options.windows}"]
    words = [f"model={options.model}", f"data={options.data}", "latency.mode=off", "evaluator=[divergence]"]
    cfg = compose([*words, *settings, "calibration.ladder=nested", "calibration.criterion=activation"])
    found: Found = {}
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
        for seed in range(options.seeds):
            cfg.calibration.seed = seed
            recipe = recipe_of(cfg, parts.adapter.shape, parts.corpus, parts.space_parts)
            for key, kl in _seed(parts, recipe, options.ratios):
                found.setdefault(key, []).append(kl)
                print(seed, *key, f"{kl:.4f}", file=sys.stderr, flush=True)
    columns = [f"{ratio:g}" for ratio in options.ratios]
    table = f"{_table(found, 'weights', [*columns, *HALVES])}\n\n{_table(found, 'units', columns)}"
    publish("criteria", __doc__, args, f"{table}\n\n{_circumstances(parts, options)}", options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("criteria", __doc__)
    found.add_argument("--seeds", type=int, default=3, help="how many calibration seeds, from 0")
    found.add_argument("--tokens", type=int, default=32768, help="calibration tokens")
    found.add_argument("--windows", type=int, default=64, help="test windows")
    found.add_argument("--ratios", type=float, nargs="+", default=[0.8, 0.6, 0.4], help="kept shares")
    return found.parse_args(list(args))


def _seed(parts: Parts, recipe: LadderRecipe, ratios: Sequence[float]) -> Iterator[tuple[Key, float]]:
    """Test KL of everything, for one calibration seed."""
    from autoprune.pruning.build import ladder_folder
    from autoprune.pruning.criteria import CRITERIA
    from autoprune.pruning.ladders import StoredLadders
    from autoprune.pruning.masks.build import masked
    from autoprune.pruning.masks.methods import METHODS
    from autoprune.uniform import uniform_candidates

    def ladders(chosen: LadderRecipe) -> StoredLadders:
        folder = ladder_folder(parts.adapter, parts.loaded.digest, chosen, parts.cache)
        return StoredLadders(parts.adapter, folder)

    whole, shares = ladders(recipe), {f"{r:g}": ("unstructured", round(100 * r)) for r in ratios}
    for method in METHODS:
        thinned = masked(whole, parts.adapter, parts.loaded.digest, recipe, parts.cache, method)
        columns = shares | (HALVES if method in COMPARED else {})
        plans = {name: _thinned(parts, *mask) for name, mask in columns.items()}
        yield from ((("weights", method, n), kl) for n, kl in _kls(parts, thinned, plans).items())
    space = parts.space(None)
    plans = {f"{r:g}": space.decode(uniform_candidates(space, r)[0]) for r in ratios}
    for ladder, criteria in (("nested", tuple(CRITERIA)), ("refit", REFIT)):
        for criterion in criteria:
            built = ladders(replace(recipe, ladder=ladder, criterion=criterion))
            name = criterion if ladder == "nested" else f"{criterion}, refit"
            yield from ((("units", name, n), kl) for n, kl in _kls(parts, built, plans).items())


def _thinned(parts: Parts, pattern: str, option: int) -> Plan:
    """The full plan with every matrix at an option of a pattern."""
    from autoprune.shape import full_plan, matrices
    from autoprune.space import Plan, SublayerPlan

    sublayers = []
    for sublayer in full_plan(parts.adapter.shape).sublayers:
        masks = {f"{name}.{pattern}": option for name in matrices(parts.adapter.shape, sublayer)}
        sublayers.append(SublayerPlan.of(sublayer.kind, **dict(sublayer.settings), **masks))
    return Plan(tuple(sublayers))


def _kls(parts: Parts, ladders: Ladders, plans: Mapping[str, Plan]) -> dict[str, float]:
    from autoprune.evaluation import Failure
    from autoprune.objective import Split
    from autoprune.run.parts import held_out
    from autoprune.supernet import Supernet

    evaluation = parts.evaluation(parts.evaluators, Supernet(parts.adapter, ladders))
    scores = evaluation.evaluate(list(plans.values()), held_out(parts.cfg, parts.corpus, Split.TEST))
    each = zip(plans, scores, strict=True)
    return {name: float("nan") if isinstance(s, Failure) else s.metrics["kl"] for name, s in each}


def _table(found: Found, what: str, columns: Sequence[str]) -> str:
    """A line a criterion."""
    names = list(dict.fromkeys(name for kind, name, _ in found if kind == what))
    lines = [f"| {what} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name in names:
        cells = [_cell(found.get((what, name, column), [])) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _circumstances(parts: Parts, options: argparse.Namespace) -> str:
    return (
        f"{parts.loaded.name}; {options.tokens:,} calibration tokens (gradients: of at most 64 windows), "
        f"{options.seeds} calibration seeds, {options.windows} test windows of {parts.cfg.window} tokens. "
        "Columns of units are shares of block parameters at most."
    )
