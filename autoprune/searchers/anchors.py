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

RELAID = 4  # how often tables that hold near a candidate are taken anew, or bounds drawn closer
LEAST = 0.001  # distance of budgets: closer ones are mostly the same plan
PATIENCE = 4  # how many times its first cap a race may last


@dataclass(frozen=True)
class Limits:
    """The constraints of a budget with tables of their costs: additive ones, or ones that hold near a candidate."""

    space: Space
    constraints: tuple[Constraint, ...]
    tables: tuple[CostTable, ...]
    bounds: Bounds
    additive: bool

    def around(self, champion: Candidate) -> Limits:
        """The same with tables that hold near the champion."""
        return self if self.additive else limits_of(self.space, self.constraints, champion)

    def optimum(self, values: Sequence[Array]) -> Candidate | None:
        """The optimum of summed values; None when nothing fits.

        Exact where costs add up. Elsewhere the tables are taken anew around what was found, a few times.
        """
        found = self._optimum(values)
        if found is None or self.additive:
            return found
        fitting = {}
        for _ in range(RELAID):
            if not any(c.violation(self.space.cost(found)) for c in self.constraints):
                fitting[found] = sum(float(row[i]) for row, i in zip(values, found.indices(), strict=True))
            nearer = self.around(found)._optimum(values)
            if nearer is None or nearer == found:
                break
            found = nearer
        rng = np.random.default_rng(0)
        return min(fitting, key=lambda c: fitting[c], default=self.space.repair(found, self.constraints, rng))

    def _optimum(self, values: Sequence[Array]) -> Candidate | None:
        if len(self.constraints) == 1:
            found = minimise(values, self.tables[0], self.constraints[0])
        else:
            found = minimise_jointly(values, self.tables, self.constraints)
        return None if found is None else Candidate(found)

    def pick(self, values: Array, rng: np.random.Generator) -> Candidate | None:
        """A near-optimum of summed values [genes, width], quickly; None when none was found."""
        shares = np.ones(1) if len(self.tables) == 1 else rng.dirichlet(np.ones(len(self.tables)))
        found, over = None, np.zeros(len(self.tables))
        for _ in range(1 if self.additive else RELAID):
            picked = self.bounds.tightened(over).pick(values, shares)
            if picked is None:
                break
            found = Candidate(tuple(int(v) for v in picked))
            cost = self.space.cost(found)
            beyond = np.array([c.violation(cost) for c in self.constraints])
            if not beyond.any():
                return found
            over = over + beyond
        return found if found is None or self.additive else self.space.repair(found, self.constraints, rng)

    def largest(self, candidates: Sequence[Candidate], count: int) -> list[Candidate]:
        """The `count` dearest among the candidates that fit."""
        costs = {c: self.space.cost(c) for c in candidates}
        fitting = [c for c in costs if not any(k.violation(costs[c]) for k in self.constraints)]
        metric = self.constraints[0].metric
        return sorted(fitting, key=lambda c: -costs[c][metric])[:count]


def budgets(problem: Problem, quality: Objective, spacing: float, smallest: float) -> list[Limits]:
    """The problem's constraints as one budget; without any, budgets of its cost from dense down, `spacing` apart.

    Raises SettingError when there is neither a constraint nor a cost to be made small.
    """
    if not LEAST <= spacing < 1.0:
        raise SettingError(f"search.spacing={spacing} must be at least {LEAST} and below 1")
    checks.smallest(smallest)
    if problem.constraints:
        return [limits_of(problem.space, problem.constraints, problem.space.dense)]
    costs = [o.metric for o in problem.objectives if o != quality]
    if not costs:
        raise SettingError(
            "search=auto needs a constraint, or a cost among the objectives: "
            f"objectives='[{quality.metric},params]'"
        )
    space = problem.space
    dense, least = (space.cost(c)[costs[0]] for c in (space.dense, Candidate((0,) * len(space.genes))))
    low = max(smallest, least / dense)
    count = max(1, round((1.0 - low) / spacing))
    shares = [1.0 - (1.0 - low) * (i + 1) / count for i in range(count)]
    bounds = [(Constraint(costs[0], share * dense),) for share in shares]
    return [limits_of(space, constraints, space.dense) for constraints in bounds]


def limits_of(space: Space, constraints: tuple[Constraint, ...], around: Candidate) -> Limits:
    """The limits of a budget, with tables that hold at least around a candidate."""
    tables = tuple(space.local_table(c.metric, around) for c in constraints)
    additive = all(space.cost_table(c.metric) is not None for c in constraints)
    width = max(len(row) for row in tables[0].entries)
    return Limits(space, constraints, tables, Bounds(tables, constraints, width), additive)


@dataclass
class Anchor:
    """A budget, its champion, and how patient its races are at present."""

    limits: Limits
    champion: Candidate
    patience: int = 1
    fruitless: int = 0  # rounds since the last new champion
    past: dict[Candidate, None] = field(default_factory=dict)  # champions and leaders, latest last

    @property
    def bound(self) -> float:
        """What the first cost may be."""
        return self.limits.constraints[0].bound

    def remember(self, candidate: Candidate) -> None:
        """Put a candidate last in line."""
        self.past.pop(candidate, None)
        self.past[candidate] = None

    def judge(self, verdict: Verdict) -> None:
        """A leader that is better becomes champion; after any other race the next one is more patient."""
        if verdict.leader is not None and verdict.gap < 0:
            self.champion, self.patience, self.fruitless = verdict.leader, 1, 0
        else:
            self.patience, self.fruitless = min(2 * self.patience, PATIENCE), self.fruitless + 1
            if verdict.leader is not None:
                self.remember(verdict.leader)
        self.remember(self.champion)
