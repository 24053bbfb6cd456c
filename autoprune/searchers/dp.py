"""The additive optimum by dynamic programming (SPDY's allocation, card A6, without rounded buckets)."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.objective import Array
from autoprune.searchers.additive import Additive, Bounds
from autoprune.searchers.knapsack import Choice, Knapsack


class DP(Additive):
    """Least sum of single-site effects at one additive cost, exactly; without a constraint at many budgets.

    windows: fitness windows on which every option of every site is measured alone; confirm: other windows on which
    the found are measured; finalists: how many are confirmed at a constraint, optimum included; spread: standard
    deviation of the logarithm of each effect among the near-optima; budgets: how many are solved without a
    constraint, evenly spaced; smallest: share of the dense cost that the least of them has.
    """

    method = "dp"
    one_bound = True

    def solve(self, values: Sequence[Array], targets: Sequence[Bounds]) -> list[Choice | None]:
        """All from one dynamic program."""
        bounds = [target[0].bound for target in targets]
        program = Knapsack(values, self._tables[0], max(bounds))
        return [program.best(bound) for bound in bounds]
