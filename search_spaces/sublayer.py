"""A space whose genes each set one setting of one sublayer: decoding, additive costs and bounded repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from autoprune.errors import InfeasibleError, SpaceError
from autoprune.objective import Constraint
from autoprune.space import (
    KINDS,
    Candidate,
    CostModel,
    CostTable,
    Gene,
    OptionGene,
    Plan,
    SublayerPlan,
    digest,
)
from autoprune.walk import Walk


@dataclass(frozen=True)
class SublayerSpace:
    """Option genes over the sublayers of `full`, the plan that keeps everything; costs come from `costs`."""

    genes: tuple[Gene, ...]
    full: Plan
    costs: tuple[CostModel, ...]

    def __post_init__(self) -> None:
        positions = [_position(g) for g in self.genes]
        if len(set(positions)) != len(positions):
            raise SpaceError("two genes of the space set the same sublayer; join their options in one gene")
        for gene in self.genes:
            if not 0 <= gene.block < self.full.blocks:
                raise SpaceError(f"{gene.name} is not in the model: it has {self.full.blocks} blocks")
            self.full.at(gene.block, gene.kind).get(gene.setting)

    @cached_property
    def _options(self) -> tuple[tuple[SublayerPlan, ...], ...]:
        """The sublayer plan of every option of every gene."""
        return tuple(tuple(self._sublayer(gene, option) for option in _options(gene)) for gene in self.genes)

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
            sublayers[_position(gene)] = options[index]
        return Plan(tuple(sublayers))

    @cached_property
    def _tables(self) -> Mapping[str, CostTable]:
        return {m: self._table(model, m) for model in self.costs for m in model.base}

    def _table(self, model: CostModel, metric: str) -> CostTable:
        touched = {_position(g) for g in self.genes}
        fixed = [(i // 2, s) for i, s in enumerate(self.full.sublayers) if i not in touched]
        base = model.base[metric] + sum(model.sublayer(block, s)[metric] for block, s in fixed)
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
        walk = Walk(candidate, constraints, [self._tables[c.metric] for c in constraints])
        before = walk.values.copy()
        walk.lower(rng)
        walk.fill(before, rng)
        return walk.candidate()

    def with_options(self, options: Mapping[str, tuple[int, ...]]) -> SublayerSpace:
        """The same space with other options for some genes, by gene name; raises SpaceError for an unknown name."""
        if unknown := sorted(set(options) - {g.name for g in self.genes}):
            raise SpaceError(f"the space has no gene {unknown[0]}")
        genes = (
            replace(g, options=options[g.name]) if isinstance(g, OptionGene) and g.name in options else g
            for g in self.genes
        )
        return replace(self, genes=tuple(genes))

    def digest(self) -> str:
        """Identifies genes, options and the full plan."""
        return digest([(g.name, list(_options(g))) for g in self.genes], self.full.to_json())


def _position(gene: Gene) -> int:
    """Where the gene's sublayer stands in a plan."""
    return 2 * gene.block + KINDS.index(gene.kind)


def _options(gene: Gene) -> tuple[int, ...]:
    if not isinstance(gene, OptionGene):
        raise SpaceError(f"{gene.name} is an array gene; this space takes option genes")
    return gene.options


def _monotone(row: tuple[float, ...]) -> tuple[float, ...]:
    """Running maximum: a measured cost that falls when more is kept is noise, and repair needs monotone costs."""
    return tuple(np.maximum.accumulate(np.array(row)).tolist())
