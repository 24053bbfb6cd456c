"""What dp and milp share: one sensitivity table, solved exactly, confirmed afresh.

The table is measured at the dense model, or at the plan that the ladders were built around.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Array, Constraint, Fidelity, Result, Split
from autoprune.searchers import checks, sensitivity
from autoprune.searchers.knapsack import Choice
from autoprune.searchers.problem import Problem, step_rng
from autoprune.searchers.script import Script, Scripted, complete
from autoprune.space import Candidate, CostTable

TRIES = 4  # perturbed tables for every near-optimum that is wanted
WIDEST = 10.0  # of the logarithm of an effect: e^10 either way leaves nothing of it

Bounds = tuple[Constraint, ...]


class Additive(Scripted):
    """Measures every option of every gene alone, then confirms what the sum of these effects calls best.

    With constraints the optimum and near-optima of perturbed tables are confirmed; without any the optimum of every
    budget is. Confirming uses windows that the table has not seen, so that nothing is chosen by the noise it was
    found by.
    """

    method: str
    one_bound = False  # whether it takes a single constraint only
    batch = 1  # the whole table, or all that is to be confirmed, is asked for at once
    probes = True  # what the dense model loses by one site alone is beyond any constraint

    def __init__(
        self,
        problem: Problem,
        windows: int = 4,
        confirm: int = 16,
        finalists: int = 8,
        spread: float = 0.2,
        budgets: int = 24,
        smallest: float = 0.3,
    ) -> None:
        super().__init__(problem)
        self._sizes = problem.sizes(self.method).tolist()
        self._quality = problem.quality(self.method)
        self._fidelity = problem.fidelity(windows, "search.windows")
        for name, value in (("confirm", confirm), ("finalists", finalists), ("budgets", budgets)):
            checks.at_least(name, value, 1)
        if not 0 <= spread <= WIDEST:
            raise SettingError(f"search.spread={spread} is not between 0 and {WIDEST:g}")
        problem.fidelity(windows + confirm, "search.windows + search.confirm")
        self._afresh = Fidelity(Split.FITNESS, (windows, windows + confirm))
        checks.smallest(smallest)
        self._finalists, self._spread = finalists, spread
        self._targets, self._tables = self._wanted(budgets, smallest)
        self._confirmed: list[Result] = []

    @abstractmethod
    def solve(self, values: Sequence[Array], targets: Sequence[Bounds]) -> list[Choice | None]:
        """The options of least summed value within each target's bounds; None where nothing fits."""

    @property
    def single_target(self) -> bool:
        """With constraints it works at one budget; without any one table gives a front."""
        return bool(self.problem.constraints)

    def finalists(self) -> list[Candidate]:
        """What was confirmed at a constraint, best first; of a front the results themselves say it."""
        if not self.single_target:
            return []
        told = [r for r in self._confirmed if r.ok]
        ranked = sorted(told, key=lambda r: self._quality.value(r.metrics))
        return [r.proposal.candidate for r in ranked]

    def script(self) -> Script:
        """The table at once, for plans that differ in one site share most of their work; then what it says is best."""
        base = self.problem.base
        varied = sensitivity.variations(base, self._sizes)
        results: list[Result] = []
        yield from complete([base, *(v.candidate for v in varied)], self._fidelity, results)
        changes = sensitivity.changes(results[0], varied, results[1:], self._quality) if results[0].ok else {}
        table = sensitivity.effects(base, self._sizes, changes)
        yield from complete(list(dict.fromkeys(self._solutions(table))), self._afresh, self._confirmed)

    def _solutions(self, table: Sequence[Array]) -> Iterator[Candidate]:
        found = [Candidate(c) for c in self.solve(table, self._targets) if c is not None]
        if not found:  # too much failed to tell what fits
            rng = step_rng(self.problem.seed, 0)
            seeds = self.problem.seeds or (self.problem.space.dense,)
            found = [self.problem.space.repair(s, self.problem.constraints, rng) for s in seeds]
        if self.problem.around is not None:
            yield self.problem.around
        yield from found
        if self.single_target:
            yield from self._near(table, set(found))

    def _near(self, table: Sequence[Array], found: set[Candidate]) -> Iterator[Candidate]:
        """Optima of the table with every effect a little off, as measured effects are."""
        for number in range(TRIES * self._finalists):
            if len(found) >= self._finalists:
                return
            rng = step_rng(self.problem.seed, 1 + number)
            shaken = [row * np.exp(self._spread * rng.standard_normal(len(row))) for row in table]
            (choice,) = self.solve(shaken, self._targets)
            if choice is not None and (candidate := Candidate(choice)) not in found:
                found.add(candidate)
                yield candidate

    def _wanted(self, budgets: int, smallest: float) -> tuple[list[Bounds], tuple[CostTable, ...]]:
        """The bounds of every target, and the tables of the bounded costs."""
        if self.problem.constraints:
            metrics = [c.metric for c in self.problem.constraints]
            if self.one_bound and len(metrics) > 1:
                raise SettingError(
                    f"constraints: search={self.method} takes one bound, not {len(metrics)}; "
                    "search=milp takes any number"
                )
            return [self.problem.constraints], tuple(self.problem.table(m, self.method) for m in metrics)
        costs = [o.metric for o in self.problem.objectives if o != self._quality]
        if not costs:
            raise SettingError(
                f"search={self.method} needs a constraint, or a cost among the objectives: "
                f"objectives='[{self._quality.metric},params]'"
            )
        table = self.problem.table(costs[0], self.method)
        low = max(smallest * table.dense, table.smallest)
        bounds = np.linspace(low, table.dense, budgets, endpoint=False)
        return [(Constraint(table.metric, float(b)),) for b in bounds], (table,)
