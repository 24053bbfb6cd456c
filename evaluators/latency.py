"""Predicted latency of plans, from a table that was measured on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from autoprune.evaluation import Scores
from autoprune.hardware.table import LatencyTable
from autoprune.objective import Fidelity
from autoprune.space import Plan, plan_cost


class Latency:
    """`prefill` and `decode` in milliseconds as the table predicts them; any fidelity will do."""

    needs: Literal["plan"] = "plan"

    def __init__(self, table: LatencyTable) -> None:
        self.metrics = tuple(table.base)
        self._table = table

    def evaluate(self, plans: Sequence[Plan], fidelity: Fidelity) -> list[Scores]:
        """One prediction a plan; there are no values per window."""
        return [Scores(plan_cost(plan, self._table), {}) for plan in plans]
