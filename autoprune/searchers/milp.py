"""The additive optimum under any number of additive costs: mixed-integer programming (HiGHS), card A6's problem."""

from __future__ import annotations

from collections.abc import Sequence

from autoprune.objective import Array
from autoprune.searchers.additive import Additive, Bounds
from autoprune.searchers.knapsack import Choice, minimise_jointly


class MILP(Additive):
    """Least sum of single-site effects within several additive costs, exactly; without constraints at many budgets.

    windows: fitness windows on which every option of every site is measured alone; confirm: other windows on which
    the found are measured; finalists: how many are confirmed at the constraints, optimum included; spread: standard
    deviation of the logarithm of each effect among the near-optima; budgets: how many are solved without
    constraints, evenly spaced; smallest: share of the dense cost that the least of them has.
    """

    method = "milp"

    def solve(self, values: Sequence[Array], targets: Sequence[Bounds]) -> list[Choice | None]:
        """One program a target."""
        return [minimise_jointly(values, self._tables, target) for target in targets]
