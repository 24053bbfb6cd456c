"""`autoprune bench sharing`: block runs and time of prefix-shared batches against one plan at a time.

Three batches on the same windows: single-site changes of the dense plan (a sensitivity pass), level switches around
one parent (an evopress generation), and generations of nsga2. Times are processor seconds of one thread, both ways
interleaved. Also what switching plans costs.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from autoprune.bench.table import parser, publish
from autoprune.evaluation import Evaluation
from autoprune.objective import Fidelity, Result, Split, Status, parse_constraint
from autoprune.run.parts import Parts, objectives, open_parts, search_evaluators
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate, OptionGene, Plan, Space

WINDOWS = 8
GENERATIONS = 6


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    from autoprune.config import compose
    from autoprune.progress import Progress

    cfg = compose([f"model={options.model}", f"data={options.data}", "latency.mode=off"])
    with Progress(quiet=True) as progress:
        parts = open_parts(cfg, progress)
    space = parts.space(None)
    evaluation = parts.evaluation(search_evaluators(parts, objectives(cfg, space, parts.evaluators)))
    batches = {
        "sensitivity pass": [sensitivity(space)],
        "evopress generation": _generations(parts, space, evaluation, "evopress"),
        "nsga2 generations": _generations(parts, space, evaluation, "nsga2"),
    }
    lines = ["| batch | plans | block runs of naive | time of naive |", "|---|---|---|---|"]
    lines += [_line(name, groups, evaluation) for name, groups in batches.items()]
    table = "\n".join([*lines, "", _switching(parts, space, evaluation)])
    publish("sharing", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("sharing", __doc__)
    return found.parse_args(list(args))


def sensitivity(space: Space) -> list[Plan]:
    """Every single-site change of the dense plan."""
    plans = []
    for index, gene in enumerate(space.genes):
        assert isinstance(gene, OptionGene)
        plans += [space.decode(space.dense.with_value(index, v)) for v in range(len(gene.options) - 1)]
    return plans


def _generations(parts: Parts, space: Space, evaluation: Evaluation, method: str) -> list[list[Plan]]:
    """The batches that a method really asks for, searched along so that later generations are typical."""
    fidelity = Fidelity(Split.FITNESS, (0, WINDOWS))
    searcher = searcher_of(parts, space, method)
    batches: list[list[Plan]] = []
    while len(batches) < GENERATIONS:
        proposals = searcher.ask(searcher.batch)
        plans = [space.decode(p.candidate) for p in proposals]
        outcomes: list[Any] = evaluation.evaluate(plans, fidelity)
        pairs = zip(proposals, outcomes, strict=True)
        searcher.tell([Result(p, Status.OK, {**space.cost(p.candidate), **o.metrics}) for p, o in pairs])
        if len(plans) >= searcher.batch // 2:  # not the later stages of a generation
            batches.append(plans)
    return batches[1:]


def searcher_of(parts: Parts, space: Space, method: str) -> Any:
    """evopress at 0.6x of the block parameters, or nsga2 without a bound."""
    wanted = objectives(parts.cfg, space, parts.evaluators)
    bounds = (parse_constraint("params", "0.6x", space.cost(space.dense)),) if method == "evopress" else ()
    seeds: tuple[Candidate, ...] = seed_candidates(space, bounds, list(parts.cfg.uniform), 0)
    problem = Problem(space, wanted, bounds, 0, parts.corpus.count(Split.FITNESS), seeds)
    return EvoPress(problem) if method == "evopress" else NSGA2(problem)


def _line(name: str, groups: Sequence[Sequence[Plan]], evaluation: Evaluation) -> str:
    fidelity = Fidelity(Split.FITNESS, (0, WINDOWS))
    telemetry = evaluation.supernet.telemetry
    runs, naive = telemetry.runs, telemetry.naive_runs
    for plans in groups:
        evaluation.evaluate(plans, fidelity)
    share = (telemetry.runs - runs) / (telemetry.naive_runs - naive)
    times = np.array([_times(plans, evaluation, fidelity) for plans in groups])
    ratio = float(np.median(times[:, 0] / times[:, 1]))
    return f"| {name} | {sum(map(len, groups))} | {share:.3f} | {ratio:.3f} |"


def _times(plans: Sequence[Plan], evaluation: Evaluation, fidelity: Fidelity) -> tuple[float, float]:
    start = time.thread_time()
    evaluation.evaluate(plans, fidelity)
    middle = time.thread_time()
    for plan in plans:
        evaluation.evaluate([plan], fidelity)
    return middle - start, time.thread_time() - middle


def _switching(parts: Parts, space: Space, evaluation: Evaluation) -> str:
    """Time to point at the weights of plans never seen before, against the time of evaluating them."""
    from autoprune.pruning.ladders import StoredLadders

    plans = sensitivity(space)
    fresh = StoredLadders(parts.adapter, parts.ladder_folder)
    start = time.thread_time()
    for plan in plans:
        for index, sublayer in enumerate(plan.sublayers):
            if not sublayer.gone:
                fresh.weights(index // 2, sublayer)
    middle = time.thread_time()
    evaluation.evaluate(plans, Fidelity(Split.FITNESS, (0, WINDOWS)))
    share = (middle - start) / (time.thread_time() - middle)
    return f"Switching to a plan takes {share:.3%} of evaluating it on {WINDOWS} windows."
