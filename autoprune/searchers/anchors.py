"""The budgets of a search: what each allows, and its champion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Array, Constraint, Objective
from autoprune.searchers import checks
from autoprune.searchers.knapsack import minimise, minimise_jointly
from autoprune.searchers.problem import Problem
from autoprune.searchers.proposals import Bounds
from autoprune.searchers.race import Verdict
from autoprune.space import Candidate, CostTable, Space

LEAST = 0.001  # distance of budgets: closer ones are mostly the same plan
PATIENCE = 4  # how many times its first cap a race may last


@dataclass(frozen=True)
class Limits:
    """The constraints of a budget with the additive tables of their costs."""

    space: Space
    constraints: tuple[Constraint, ...]
    tables: tuple[CostTable, ...]
    bounds: Bounds

    def optimum(self, values: Sequence[Array]) -> Candidate | None:
        """The exact optimum of summed values; None when nothing fits."""
        if len(self.constraints) == 1:
            found = minimise(values, self.tables[0], self.constraints[0])
        else:
            found = minimise_jointly(values, self.tables, self.constraints)
        return None if found is None else Candidate(found)

    def pick(self, values: Array, rng: np.random.Generator) -> Candidate | None:
        """A near-optimum of summed values [genes, width], quickly; None when none was found."""
        shares = np.ones(1) if len(self.tables) == 1 else rng.dirichlet(np.ones(len(self.tables)))
        found = self.bounds.pick(values, shares)
        return None if found is None else Candidate(tuple(int(v) for v in found))

    def largest(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """The `count` dearest among the candidates that fit."""
        costs = {c: self.space.cost(c) for c in candidates}
        fitting = [c for c in costs if not any(k.violation(costs[c]) for k in self.constraints)]
        metric = self.constraints[0].metric
        return sorted(fitting, key=lambda c: -costs[c][metric])[:count]


def budgets(problem: Problem, quality: Objective, spacing: float, smallest: float) -> list[Limits]:
    """The problem's constraints as one budget; without any, budgets of its cost from dense down, `spacing` apart.

    Raises SettingError when there is neither a constraint nor a cost to be made small, or a cost does not add up.
    """
    if not LEAST <= spacing < 1.0:
        raise SettingError(f"search.spacing={spacing} must be at least {LEAST} and below 1")
    checks.smallest(smallest)
    if problem.constraints:
        return [_limits(problem, problem.constraints)]
    costs = [o.metric for o in problem.objectives if o != quality]
    if not costs:
        raise SettingError(
            "search=auto needs a constraint, or a cost among the objectives: "
            f"objectives='[{quality.metric},params]'"
        )
    table = problem.table(costs[0], "auto")
    low = max(smallest, table.smallest / table.dense)
    count = max(1, round((1.0 - low) / spacing))
    shares = [1.0 - (1.0 - low) * (i + 1) / count for i in range(count)]
    return [_limits(problem, (Constraint(costs[0], share * table.dense),)) for share in shares]


def _limits(problem: Problem, constraints: tuple[Constraint, ...]) -> Limits:
    tables = tuple(problem.table(c.metric, "auto") for c in constraints)
    width = int(problem.sizes("auto").max())
    return Limits(problem.space, constraints, tables, Bounds(tables, constraints, width))


@dataclass
class Anchor:
    """A budget, its champion, and how patient its races are at present."""

    limits: Limits
    champion: Candidate
    patience: int = 1
    past: dict[Candidate, None] = field(default_factory=dict)  # champions and leaders, latest last

    def remember(self, candidate: Candidate) -> None:
        """Put a candidate last in line."""
        self.past.pop(candidate, None)
        self.past[candidate] = None

    def judge(self, verdict: Verdict) -> None:
        """A leader that is better becomes champion; after any other race the next one is more patient."""
        if verdict.leader is not None and verdict.gap < 0:
            self.champion, self.patience = verdict.leader, 1
        else:
            self.patience = min(2 * self.patience, PATIENCE)
            if verdict.leader is not None:
                self.remember(verdict.leader)
        self.remember(self.champion)
