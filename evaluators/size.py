"""Sizes and FLOPs of plans, from the model's shape alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from autoprune.evaluation import Scores
from autoprune.objective import Fidelity
from autoprune.shape import AnalyticCosts
from autoprune.space import Plan, plan_cost


class Size:
    """`params`, `params_total`, `flops`, `kv_bytes` and `bytes` as `AnalyticCosts` defines them, at any fidelity."""

    needs: Literal["plan"] = "plan"

    def __init__(self, costs: AnalyticCosts) -> None:
        self.metrics = tuple(costs.base)
        self._costs = costs

    def evaluate(self, plans: Sequence[Plan], fidelity: Fidelity) -> list[Scores]:
        """One set of costs a plan; there are no values per window."""
        return [Scores(plan_cost(plan, self._costs), {}) for plan in plans]
