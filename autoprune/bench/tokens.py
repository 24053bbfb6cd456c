"""`autoprune bench tokens`: keep schedules that were searched for, against one keep ratio in every block.

Every rule has its own search within the same share of the dense FLOPs. `uniform` is the best on *selection* of the
plans that hand on the same share in all blocks (what that leaves of the budget goes to the first blocks); `searched` is
the lowest KL on *selection*. KL and accuracy are of all *test* items, means over seeds.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np

from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.evaluation import Evaluation, Failure
from autoprune.ledger import Ledger
from autoprune.models import adapter_for
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.progress import Progress
from autoprune.run import finals, pipeline
from autoprune.run.folder import open_ledger
from autoprune.run.parts import Parts, held_out, open_parts
from autoprune.run.targets import PHASE
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, Plan, Space, plan_cost, token_keep
from autoprune.uniform import uniform_candidates

FINALISTS, LONGEST = 16, 64  # LONGEST: tokens of a built-in sentence
RULES = ("attention", "cls", "pagerank", "merge")
COLUMNS = (
    *("model", "rule", "dense accuracy", "uniform FLOPs", "uniform KL", "uniform accuracy"),
    *("searched FLOPs", "searched KL", "searched accuracy", "KL lower by", "searched schedule (seed 0, %)"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for model in options.models:
        for rule in options.rules:
            cells = _cells([_searched(model, rule, seed, options) for seed in range(options.seeds)])
            lines.append(f"| {' | '.join([model, rule, *cells])} |")
            print(lines[-1], flush=True)
    publish("tokens", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("tokens", __doc__, model=False)
    found.add_argument("--models", nargs="+", default=["digits-vit", "docs-bert"], help="classifiers")
    found.add_argument("--rules", nargs="+", default=list(RULES), choices=RULES)
    found.add_argument("--ratio", type=float, default=0.7, help="FLOPs to dense")
    found.add_argument("--items", type=int, default=12_000, help="fitness items put through a model")
    found.add_argument("--seeds", type=int, default=3, help="how many searches of each kind")
    return found.parse_args(list(args))


@dataclass(frozen=True)
class Row:
    """A plan with its share of the dense FLOPs and its figures on *test*."""

    plan: Plan
    flops: float
    kl: float
    accuracy: float


def _searched(model: str, rule: str, seed: int, options: argparse.Namespace) -> tuple[Row, Row, Row]:
    """Dense, uniform and searched of one search."""
    with tempfile.TemporaryDirectory() as place:
        settings = [
            *(f"model={model}", "space=[tokens]", f"space.tokens.rule={rule}", "objectives=[kl,flops]"),
            *(f"constraints={{flops: {options.ratio}x}}", f"seed={seed}", f"out={place}/run", "quiet=true"),
            f"tokens={options.items * _item(model)}",
        ]
        cfg = compose(settings)
        with Progress(quiet=True) as progress:
            path = pipeline.search_only(cfg, "", progress)
            parts = open_parts(cfg, progress)
        with closing(open_ledger(path)) as ledger:
            return _rows(parts, parts.space(None), ledger, options.ratio)


def _rows(parts: Parts, space: Space, ledger: Ledger, ratio: float) -> tuple[Row, Row, Row]:
    """Chosen on *selection* among the finalists that the search named, or else its best; scored on *test*."""
    bound = ratio * space.cost(space.dense)["flops"] * (1 + 1e-9)
    found = [c for c in finals.chosen(ledger.events(PHASE)) if space.cost(c)["flops"] <= bound]
    if not found:
        frame = ledger.to_frame()
        rows = frame[(frame["status"] == "ok") & (frame["flops"] <= bound)].sort_values("kl", kind="stable")
        found = [Candidate.from_json(str(c)) for c in rows["candidate"].drop_duplicates()[:FINALISTS]]
    evaluation = parts.evaluation(parts.evaluators)
    groups = ([space.dense], uniform_candidates(space, ratio, "flops"), found[:FINALISTS])
    picked = [_best(parts, evaluation, [space.decode(c) for c in group]) for group in groups]
    dense, uniform, ours = (_row(parts, evaluation, space, plan) for plan in picked)
    return dense, uniform, ours


def _best(parts: Parts, evaluation: Evaluation, plans: Sequence[Plan]) -> Plan:
    """That of the lowest KL on *selection*."""
    outcomes = evaluation.evaluate(plans, held_out(parts.cfg, parts.corpus, Split.SELECTION))
    kls = [np.inf if isinstance(o, Failure) else o.metrics["kl"] for o in outcomes]
    return plans[int(np.argmin(kls))]


def _row(parts: Parts, evaluation: Evaluation, space: Space, plan: Plan) -> Row:
    (outcome,) = evaluation.evaluate([plan], held_out(parts.cfg, parts.corpus, Split.TEST))
    assert not isinstance(outcome, Failure), outcome
    costs = AnalyticCosts(parts.adapter.shape, int(parts.cfg.window))
    flops = plan_cost(plan, costs)["flops"] / space.cost(space.dense)["flops"]
    return Row(plan, flops, outcome.metrics["kl"], outcome.metrics["accuracy"])


def _item(model: str) -> int:
    """Tokens of an item."""
    shape = adapter_for(load_model(model).model).shape
    return shape.tokens or LONGEST


def _cells(found: Sequence[tuple[Row, Row, Row]]) -> list[str]:
    def mean(which: int, name: str) -> float:
        return float(np.mean([getattr(rows[which], name) for rows in found]))

    cells = [f"{mean(0, 'accuracy'):.4f}"]
    for which in (1, 2):
        cells += [
            f"{mean(which, 'flops'):.3f}x",
            f"{mean(which, 'kl'):.4f}",
            f"{mean(which, 'accuracy'):.4f}",
        ]
    lower = 1 - mean(2, "kl") / mean(1, "kl")
    return [*cells, f"{lower:.0%}", _schedule(found[0][2].plan)]


def _schedule(plan: Plan) -> str:
    """Per cent by block."""
    keeps = [token_keep(plan.at(b, "attention")) for b in range(plan.blocks)]
    return " ".join("100" if keep is None else str(keep[1]) for keep in keeps)
