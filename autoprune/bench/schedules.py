"""What benchmarks of token schedules share: a search's best plan against one keep ratio in every block."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.evaluation import Evaluation, Failure
from autoprune.ledger import Ledger
from autoprune.objective import Split
from autoprune.run import finals
from autoprune.run.parts import Parts, held_out
from autoprune.run.targets import PHASE
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, Plan, Space, plan_cost, token_keep
from autoprune.uniform import uniform_candidates

FINALISTS = 16


@dataclass(frozen=True)
class Row:
    """A plan with its share of the dense FLOPs and its figures on *test*."""

    plan: Plan
    flops: float
    metrics: Mapping[str, float]


def rows_of(parts: Parts, space: Space, ledger: Ledger, ratio: float) -> tuple[Row, Row, Row]:
    """Chosen on *selection* among the finalists that the search named, or else its best; scored on *test*."""
    bound = ratio * space.cost(space.dense)["flops"] * (1 + 1e-9)
    found = [c for c in finals.chosen(ledger.events(PHASE)) if space.cost(c)["flops"] <= bound]
    if not found:
        frame = ledger.to_frame()
        within = frame[(frame["status"] == "ok") & (frame["flops"] <= bound)].sort_values("kl", kind="stable")
        found = [Candidate.from_json(str(c)) for c in within["candidate"].drop_duplicates()[:FINALISTS]]
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
    return Row(plan, flops, outcome.metrics)


def schedule(plan: Plan) -> str:
    """Per cent by block."""
    keeps = [token_keep(plan.at(b, "attention")) for b in range(plan.blocks)]
    return " ".join("100" if keep is None else str(keep[1]) for keep in keeps)
