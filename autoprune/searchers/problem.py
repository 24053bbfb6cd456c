"""What a searcher is given: the space, what is wanted, and where it may look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Constraint, Fidelity, Objective, Result, Split
from autoprune.space import Candidate, CostTable, OptionGene, Space


@dataclass(frozen=True)
class Problem:
    """A search problem: `windows` fitness windows of `window` tokens each; `seeds` are plans worth starting from.

    `tokens` is what the phase may spend, for methods that plan ahead; None when nothing limits it.
    """

    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    seed: int = 0
    windows: int = 1
    seeds: tuple[Candidate, ...] = ()
    tokens: int | None = None
    window: int = 1

    def sizes(self, method: str) -> np.ndarray:
        """Number of options of each gene; raises SettingError when `method` meets an array gene."""
        genes = self.space.genes
        if not all(isinstance(g, OptionGene) for g in genes):
            raise SettingError(f"search={method} takes option genes only; the space holds array genes")
        return np.array([len(g.options) for g in genes if isinstance(g, OptionGene)])

    def fidelity(self, windows: int, setting: str) -> Fidelity:
        """The first `windows` fitness windows; raises SettingError when there are not as many."""
        if not 1 <= windows <= self.windows:
            raise SettingError(
                f"{setting}={windows} is not between 1 and the {self.windows} fitness windows there are"
            )
        return Fidelity(Split.FITNESS, (0, windows))

    def values(self, result: Result) -> list[float]:
        """The objectives of a usable result, all to be minimised."""
        return [o.value(result.metrics) for o in self.objectives]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """A generator that depends on the seed and the step number only."""
    return np.random.default_rng([seed, step])


def fill(
    space: Space,
    candidate: Candidate,
    genes: Sequence[int],
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
) -> Candidate:
    """Raise random genes among `genes`, one option at a time, while every constraint holds; bounded by the options."""
    open_genes, cost = list(genes), space.cost(candidate)
    tables = [space.cost_table(c.metric) for c in constraints]
    while open_genes:
        position = int(rng.integers(len(open_genes)))
        gene = open_genes[position]
        value, options = candidate.values[gene], space.genes[gene]
        assert isinstance(options, OptionGene) and isinstance(value, int)
        if value + 1 < len(options.options) and not _surely_broken(constraints, tables, cost, gene, value):
            raised = candidate.with_value(gene, value + 1)
            raised_cost = space.cost(raised)
            if not any(c.violation(raised_cost) for c in constraints):
                candidate, cost = raised, raised_cost
                continue
        open_genes.pop(position)
    return candidate


def _surely_broken(
    constraints: Sequence[Constraint],
    tables: Sequence[CostTable | None],
    cost: Mapping[str, float],
    gene: int,
    value: int,
) -> bool:
    """Whether the gene's next option breaks an additive cost; spares pricing the whole candidate."""
    for constraint, table in zip(constraints, tables, strict=True):
        if table is not None:
            row, metric = table.entries[gene], constraint.metric
            if constraint.violation({metric: cost[metric] + row[value + 1] - row[value]}):
                return True
    return False
