"""`autoprune bench criteria`: test KL by criterion and kept share, allocated uniformly.

Single weights: every matrix of every block keeps the same share, unstructured or N:M; `sparsegpt` updates what stays,
all others only mask (`obs` with the very score that SparseGPT starts from). Units: the uniform plan closest to equal
fractions of KV groups and FFN widths, on nested ladders (what stays is as it was) and on refit ones. Of a model with
experts: matrices are those of attention, units the neurons of each expert, and whole experts are a table of their own.
Mean and spread over calibration seeds, each with windows of its own. Rows are kept under `--work` and read from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import Work

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.pruning.recipe import LadderRecipe
    from autoprune.run.parts import Parts
    from autoprune.space import Plan
    from autoprune.supernet import Ladders

COMPARED = ("sparsegpt", "obs", "wanda", "magnitude")  # also where half is kept, in patterns
HALVES = {"0.5": ("unstructured", 50), "4:8": ("8", 4), "2:4": ("4", 2)}
REFIT = ("obs", "activation", "magnitude")
SPACE, MEMORY = "space.experts.per_token", "expert_bytes"
Name = tuple[str, str]  # what is ranked, criterion
Measure = Callable[[], dict[str, float]]
Found = dict[Name, list[dict[str, float]]]


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts

    work = Work(options.work, options.model, [options.data, options.tokens, options.windows, options.ratios])
    found: Found = {}
    with Progress(quiet=True) as progress:
        parts = open_parts(_settings(options), progress)
        experts = open_parts(_settings(options, *_whole_experts(parts)), progress) if _routed(parts) else None
        for seed in range(options.seeds):
            rows = list(_rows(_seeded(parts, seed), options.ratios))
            rows += [] if experts is None else list(_expert_rows(_seeded(experts, seed), options.ratios))
            for name, measure in rows:
                row = work.row(f"{seed}-{'-'.join(name).replace(', ', '-')}", measure)
                found.setdefault(name, []).append(row)
                print(seed, *name, row, file=sys.stderr, flush=True)
    tables = "\n\n".join(_table(found, what) for what in dict.fromkeys(what for what, _ in found))
    publish("criteria", __doc__, args, f"{tables}\n\n{_circumstances(parts, options)}", options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("criteria", __doc__)
    found.add_argument("--seeds", type=count, default=3, help="how many calibration seeds, from 0")
    found.add_argument("--tokens", type=int, default=32768, help="calibration tokens")
    found.add_argument("--windows", type=int, default=64, help="test windows")
    found.add_argument("--ratios", type=float, nargs="+", default=[0.8, 0.6, 0.4], help="kept shares")
    found.add_argument("--work", default="results/bench-criteria", help="where rows are kept")
    return found.parse_args(list(args))


def _settings(options: argparse.Namespace, *further: str) -> DictConfig:
    from autoprune.config import compose

    settings = [f"calibration.tokens={options.tokens}", f"test_windows={options.windows}"]
    words = [f"model={options.model}", f"data={options.data}", "latency.mode=off", "evaluator=[divergence]"]
    return compose(
        [*words, *settings, "calibration.ladder=nested", "calibration.criterion=activation", *further]
    )


def _routed(parts: Parts) -> bool:
    return parts.adapter.shape.experts > 0


def _whole_experts(parts: Parts) -> tuple[str, str]:
    return "space=[experts]", f"{SPACE}=[{parts.adapter.shape.experts_per_token}]"


def _seeded(parts: Parts, seed: int) -> Parts:
    """The same with calibration windows of this seed; its ladders are not built anew."""
    from autoprune.run.calibration import recipe_of

    parts.cfg.calibration.seed = seed
    return replace(parts, recipe=recipe_of(parts.cfg, parts.adapter.shape, parts.corpus, parts.space_parts))


def _rows(parts: Parts, ratios: Sequence[float]) -> Iterator[tuple[Name, Measure]]:
    """Single weights and units, for one calibration seed."""
    from autoprune.pruning.criteria import CRITERIA
    from autoprune.pruning.masks.methods import METHODS
    from autoprune.uniform import uniform_candidates

    for method in METHODS:
        yield ("weights", method), lambda method=method: _masked(parts, method, ratios)  # type: ignore[misc]
    space = parts.space(None)
    plans = {f"{r:g}": space.decode(uniform_candidates(space, r)[0]) for r in ratios}
    known = [n for n, found in CRITERIA.items() if found.experts or not _routed(parts)]
    for ladder, criteria in (("nested", known), ("refit", REFIT)):
        for criterion in criteria:
            recipe = replace(parts.recipe, ladder=ladder, criterion=criterion)
            name = criterion if ladder == "nested" else f"{criterion}, refit"
            yield ("units", name), lambda recipe=recipe: _kls(parts, ladders_of(parts, recipe), plans)  # type: ignore[misc]


def _expert_rows(parts: Parts, ratios: Sequence[float]) -> Iterator[tuple[Name, Measure]]:
    """Whole experts, as many in every block, for one calibration seed."""
    from autoprune.pruning.criteria.experts import EXPERT_CRITERIA
    from autoprune.uniform import uniform_candidates

    space = parts.space(None)
    plans = {f"{r:g}": space.decode(uniform_candidates(space, r, MEMORY)[0]) for r in ratios}
    for criterion in EXPERT_CRITERIA:
        recipe = replace(parts.recipe, expert_criterion=criterion)
        yield ("experts", criterion), lambda recipe=recipe: _kls(parts, ladders_of(parts, recipe), plans)  # type: ignore[misc]


def ladders_of(parts: Parts, recipe: LadderRecipe) -> Ladders:
    from autoprune.pruning.build import ladder_folder
    from autoprune.pruning.ladders import StoredLadders

    folder = ladder_folder(parts.adapter, parts.loaded.digest, recipe, parts.cache)
    return StoredLadders(parts.adapter, folder)


def _masked(parts: Parts, method: str, ratios: Sequence[float]) -> dict[str, float]:
    """By how much each matrix keeps."""
    from autoprune.pruning.ladders import StoredLadders
    from autoprune.pruning.masks.build import masked

    whole = ladders_of(parts, parts.recipe)
    assert isinstance(whole, StoredLadders)
    ladders = masked(
        whole, parts.adapter, parts.loaded.digest, parts.recipe, parts.cache, method, experts=False
    )
    columns = {f"{r:g}": ("unstructured", round(100 * r)) for r in ratios}
    columns |= HALVES if method in COMPARED else {}
    return _kls(parts, ladders, {name: thinned(parts, *mask) for name, mask in columns.items()})


def thinned(parts: Parts, pattern: str, option: int) -> Plan:
    """The full plan with every matrix, but for those of experts, at an option of a pattern."""
    from autoprune.pruning.experts import routed
    from autoprune.shape import full_plan, matrices
    from autoprune.space import Plan, SublayerPlan

    sublayers = []
    for sublayer in full_plan(parts.adapter.shape).sublayers:
        whole = routed(parts.adapter, sublayer.kind)
        named = {} if whole else matrices(parts.adapter.shape, sublayer)
        masks = {f"{name}.{pattern}": option for name in named}
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


def _table(found: Found, what: str) -> str:
    """A line a criterion."""
    rows = {name: values for (kind, name), values in found.items() if kind == what}
    columns = list(dict.fromkeys(column for values in rows.values() for column in values[0]))
    lines = [f"| {what} | {' | '.join(columns)} |", "|" + "---|" * (len(columns) + 1)]
    for name, values in rows.items():
        cells = [_cell([v[column] for v in values if column in v]) for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(values: Sequence[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _circumstances(parts: Parts, options: argparse.Namespace) -> str:
    experts = ", of experts shares of expert memory" if _routed(parts) else ""
    return (
        f"{parts.loaded.name}; {options.tokens:,} calibration tokens (gradients: of at most 64 windows), "
        f"{options.seeds} calibration seeds, {options.windows} test windows of {parts.cfg.window} tokens. "
        f"Columns of units are shares of block parameters at most{experts}."
    )
