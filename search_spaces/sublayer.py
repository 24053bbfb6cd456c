"""A space whose genes each set one setting of one sublayer: decoding, additive costs and bounded repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoprune.errors import InfeasibleError, SpaceError
from autoprune.objective import Constraint
from autoprune.space import Candidate, CostModel, CostTable, Gene, OptionGene, Plan, SublayerPlan, digest


@dataclass(frozen=True)
class SublayerSpace:
    """Option genes over the sublayers of `full`, the plan that keeps everything; costs come from `costs`."""

    genes: tuple[Gene, ...]
    full: Plan
    costs: tuple[CostModel, ...]

    def __post_init__(self) -> None:
        sites = [(g.block, g.kind) for g in self.genes]
        if len(set(sites)) != len(sites):
            raise SpaceError("two genes of the space set the same sublayer; join their options in one gene")

    @cached_property
    def _options(self) -> tuple[tuple[SublayerPlan, ...], ...]:
        """The sublayer plan of every option of every gene."""
        return tuple(
            tuple(self._sublayer(gene, option) for option in _options(gene)) for gene in self.genes
        )

    def _sublayer(self, gene: Gene, option: int) -> SublayerPlan:
        rest = {k: v for k, v in self.full.at(gene.block, gene.kind).settings if k != gene.setting}
        return SublayerPlan.of(gene.kind, **{**rest, gene.setting: option})

    @property
    def dense(self) -> Candidate:
        """Every gene at its last option."""
        return Candidate(tuple(len(_options(g)) - 1 for g in self.genes))

    def decode(self, candidate: Candidate) -> Plan:
        """The plan of a candidate; raises SpaceError when values do not fit the genes."""
        indices = candidate.indices()
        if len(indices) != len(self.genes):
            raise SpaceError(f"the candidate has {len(indices)} values, the space {len(self.genes)} genes")
        sublayers = list(self.full.sublayers)
        for gene, options, index in zip(self.genes, self._options, indices, strict=True):
            if not 0 <= index < len(options):
                raise SpaceError(f"{gene.name}={index} is outside its options 0..{len(options) - 1}")
            sublayers[2 * gene.block + (gene.kind == "ffn")] = options[index]
        return Plan(tuple(sublayers))

    @cached_property
    def _tables(self) -> Mapping[str, CostTable]:
        return {m: self._table(model, m) for model in self.costs for m in model.base}

    def _table(self, model: CostModel, metric: str) -> CostTable:
        touched = {2 * g.block + (g.kind == "ffn") for g in self.genes}
        fixed = (s for i, s in enumerate(self.full.sublayers) if i not in touched)
        base = model.base[metric] + sum(
            model.sublayer(i // 2, s)[metric] for i, s in enumerate(fixed)
        )
        rows = (
            tuple(model.sublayer(gene.block, option)[metric] for option in options)
            for gene, options in zip(self.genes, self._options, strict=True)
        )
        return CostTable(metric, base, tuple(_monotone(row) for row in rows))

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        """All costs, from the tables."""
        indices = candidate.indices()
        return {metric: table.total(indices) for metric, table in self._tables.items()}

    def cost_table(self, metric: str) -> CostTable | None:
        """The additive table of a metric; raises SpaceError for an unknown one."""
        if metric not in self._tables:
            raise SpaceError(f"{metric!r} is not a cost; costs: {', '.join(sorted(self._tables))}")
        return self._tables[metric]

    def check(self, constraints: Sequence[Constraint]) -> None:
        """Raise InfeasibleError when even the smallest candidate breaks a constraint."""
        for constraint in constraints:
            table = self._tables[constraint.metric]
            if constraint.violation({constraint.metric: table.smallest}):
                share = table.smallest / table.dense
                raise InfeasibleError(
                    f"constraints.{constraint.metric}={constraint.text or constraint.bound} cannot be met: "
                    f"the smallest feasible value is {table.smallest:.6g} ({share:.3f}x of dense)"
                )

    def repair(
        self, candidate: Candidate, constraints: Sequence[Constraint], rng: np.random.Generator
    ) -> Candidate:
        """Lower random genes, one option at a time, until every constraint holds, then raise again what still fits.

        At most as many steps as there are options in the space.
        """
        self.check(constraints)
        values = list(candidate.indices())
        tables = [self._tables[c.metric] for c in constraints]
        totals = [t.total(values) for t in tables]
        lowered: list[int] = []
        while any(c.violation({c.metric: x}) for c, x in zip(constraints, totals, strict=True)):
            useful = self._useful(values, constraints, tables, totals)
            gene = useful[int(rng.integers(len(useful)))]
            values[gene] -= 1
            lowered.append(gene)
            totals = [t.total(values) for t in tables]
        for gene in rng.permutation(lowered).tolist():
            values[gene] += 1
            raised = [t.total(values) for t in tables]
            if any(c.violation({c.metric: x}) for c, x in zip(constraints, raised, strict=True)):
                values[gene] -= 1
        return Candidate(tuple(values))

    def _useful(
        self,
        values: Sequence[int],
        constraints: Sequence[Constraint],
        tables: Sequence[CostTable],
        totals: Sequence[float],
    ) -> list[int]:
        """Genes whose next lower option lessens a violated cost; else any that can be lowered at all."""
        broken = [t for c, t, x in zip(constraints, tables, totals, strict=True) if c.violation({c.metric: x})]
        lowerable = [g for g, v in enumerate(values) if v > 0]
        useful = [g for g in lowerable if any(t.entries[g][values[g] - 1] < t.entries[g][values[g]] for t in broken)]
        return useful or lowerable

    def digest(self) -> str:
        """Identifies genes, options and the full plan."""
        return digest([(g.name, list(_options(g))) for g in self.genes], self.full.to_json())


def _options(gene: Gene) -> tuple[int, ...]:
    if not isinstance(gene, OptionGene):
        raise SpaceError(f"{gene.name} is an array gene; this space takes option genes")
    return gene.options


def _monotone(row: tuple[float, ...]) -> tuple[float, ...]:
    """Running maximum: a measured cost that falls when more is kept is noise, and repair needs monotone costs."""
    return tuple(np.maximum.accumulate(np.array(row)).tolist())
