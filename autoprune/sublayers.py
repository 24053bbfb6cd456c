"""A space whose genes each set one setting of one sublayer: decoding, costs and bounded repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np

from autoprune.corners import Corners, corners
from autoprune.errors import InfeasibleError, SettingError, SpaceError
from autoprune.merging import MergedSpace
from autoprune.objective import Constraint
from autoprune.shape import Shape, full_plan
from autoprune.space import (
    KINDS,
    ArrayGene,
    Candidate,
    CostModel,
    CostTable,
    Gene,
    OptionGene,
    Plan,
    PlanCosts,
    Scalar,
    SublayerPlan,
    dense_costs,
    digest,
)
from autoprune.stepwise import StepWalk
from autoprune.walk import Walk

Choice = tuple[int, ...]


class SpacePart(Protocol):
    """One group of `space=[...]`: genes of its own, to be joined with those of other groups."""

    def options(self, shape: Shape) -> Mapping[str, tuple[int, ...]]:
        """The options of each plan setting, those of all blocks together, rising."""

    def genes(self, shape: Shape) -> Sequence[Gene]:
        """The genes of a model; raises SettingError when the model has no such sites."""


@runtime_checkable
class Settled(Protocol):
    """A part that gives the sublayers of its genes further settings, which nothing searches."""

    def settled(self, shape: Shape) -> Mapping[str, Scalar]:
        """Those settings by name."""


def join(parts: Sequence[SpacePart], shape: Shape, costs: Sequence[CostModel]) -> SublayerSpace | MergedSpace:
    """The space of all parts' genes, in depth order, those of one sublayer in the order of the parts.

    What a gene sets is, in the full plan, at its last option; array genes come last. Raises SettingError when two parts
    set the same.
    """
    owned = [(g, part) for part in parts for g in part.genes(shape)]
    genes = sorted((g for g, _ in owned), key=_position)
    seen: set[str] = set()
    for gene in genes:
        if gene.name in seen:
            raise SettingError(f"space: two groups set {gene.name}; leave one out")
        seen.add(gene.name)
    settled: dict[int, dict[str, Scalar]] = {}
    for gene, part in owned:
        if isinstance(part, Settled):
            settled.setdefault(_position(gene), {}).update(part.settled(shape))
    options = [g for g in genes if isinstance(g, OptionGene)]
    space = SublayerSpace(tuple(options), _completed(full_plan(shape), options, settled), tuple(costs))
    arrays = tuple(g for g in genes if isinstance(g, ArrayGene))
    return MergedSpace(space, arrays) if arrays else space


def joint_options(parts: Sequence[SpacePart], shape: Shape) -> dict[str, tuple[int, ...]]:
    """The options of every plan setting; what no part changes has the full one only."""
    plan = full_plan(shape)
    found: dict[str, tuple[int, ...]] = {
        name: (int(value),) for s in plan.sublayers for name, value in s.settings
    }
    for part in parts:
        found |= part.options(shape)
    return found


def _completed(plan: Plan, genes: Sequence[Gene], settled: Mapping[int, Mapping[str, Scalar]]) -> Plan:
    """The plan with the genes' settings, each at its last option, and what parts settle for a sublayer."""
    sublayers = [{**dict(s.settings), **settled.get(i, {})} for i, s in enumerate(plan.sublayers)]
    for gene in genes:
        sublayers[_position(gene)][gene.setting] = _options(gene)[-1]
    return Plan(
        tuple(SublayerPlan.of(s.kind, **found) for s, found in zip(plan.sublayers, sublayers, strict=True))
    )


@dataclass(frozen=True)
class SublayerSpace:
    """Option genes over the sublayers of `full`, the plan that keeps everything; costs come from `costs`.

    Costs add up over sublayers, but for what a `PlanCosts` names; over genes, too, where no sublayer has two.
    """

    genes: tuple[Gene, ...]
    full: Plan
    costs: tuple[CostModel, ...]
    reference: Mapping[str, float] = field(
        default_factory=dict
    )  # costs that ratios are to, where not those of `dense`
    _decoded: dict[tuple[int, Choice], SublayerPlan] = field(default_factory=dict, init=False, repr=False)
    _prices: dict[tuple[int, Choice], Mapping[str, float]] = field(
        default_factory=dict, init=False, repr=False
    )

    def __post_init__(self) -> None:
        if len({g.name for g in self.genes}) != len(self.genes):
            raise SpaceError("two genes of the space set the same; join their options in one gene")
        for gene in self.genes:
            if not 0 <= gene.block < self.full.blocks:
                raise SpaceError(f"{gene.name} is not in the model: it has {self.full.blocks} blocks")
            self.full.at(gene.block, gene.kind).get(gene.setting)

    @cached_property
    def _groups(self) -> Mapping[int, Choice]:
        """The genes of every sublayer that has some, by its position in a plan."""
        groups: dict[int, Choice] = {}
        for number, gene in enumerate(self.genes):
            groups[_position(gene)] = (*groups.get(_position(gene), ()), number)
        return groups

    @cached_property
    def dense(self) -> Candidate:
        """Every gene at its last option."""
        return Candidate(tuple(len(_options(g)) - 1 for g in self.genes))

    def decode(self, candidate: Candidate) -> Plan:
        """The plan of a candidate; raises SpaceError when values do not fit the genes.

        Nothing else matters of a sublayer that is gone: all its settings are zero. No token uses more experts than
        are kept.
        """
        indices = candidate.indices()
        if len(indices) != len(self.genes):
            raise SpaceError(f"the candidate has {len(indices)} values, the space {len(self.genes)} genes")
        sublayers = list(self.full.sublayers)
        if self._additive:
            for (position, choices), index in zip(self._choices, indices, strict=True):
                sublayers[position] = (
                    choices[index] if 0 <= index < len(choices) else self._sublayer(position, (index,))
                )
            return Plan(tuple(sublayers))
        for position, genes in self._groups.items():
            sublayers[position] = self._sublayer(position, tuple(indices[g] for g in genes))
        return Plan(tuple(sublayers))

    @cached_property
    def _choices(self) -> list[tuple[int, list[SublayerPlan]]]:
        """Of an additive space, for each gene: its sublayer's position, and the sublayer at each option."""
        found = []
        for gene in self.genes:
            at, options = _position(gene), range(len(_options(gene)))
            found.append((at, [self._sublayer(at, (option,)) for option in options]))
        return found

    def _sublayer(self, position: int, choice: Choice) -> SublayerPlan:
        """The sublayer at a position when its genes are at these options."""
        found = self._decoded.get((position, choice))
        if found is None:
            settings = dict(self.full.sublayers[position].settings)
            for gene, index in zip((self.genes[g] for g in self._groups[position]), choice, strict=True):
                options = _options(gene)
                if not 0 <= index < len(options):
                    raise SpaceError(f"{gene.name}={index} is outside its options 0..{len(options) - 1}")
                settings[gene.setting] = options[index]
            found = SublayerPlan.of(self.full.sublayers[position].kind, **settings)
            if found.gone:
                found = SublayerPlan.of(found.kind, **dict.fromkeys(settings, 0))
            elif (
                "experts" in settings and "experts_per_token" in settings
            ):  # no token uses more than there are
                used = min(int(settings["experts"]), int(settings["experts_per_token"]))
                found = SublayerPlan.of(found.kind, **{**settings, "experts_per_token": used})
            self._decoded[position, choice] = found
        return found

    def _price(self, position: int, choice: Choice) -> Mapping[str, float]:
        """All costs of the sublayer at a position when its genes are at these options."""
        found = self._prices.get((position, choice))
        if found is None:
            plan = self._sublayer(position, choice)
            found = {m: v for model in self.costs for m, v in model.sublayer(position // 2, plan).items()}
            self._prices[position, choice] = found
        return found

    @cached_property
    def _fixed(self) -> Mapping[str, float]:
        """Costs of what has no gene; of coupled metrics only the names count."""
        rest = [(i // 2, s) for i, s in enumerate(self.full.sublayers) if i not in self._groups]
        return {
            metric: base + sum(model.sublayer(block, s)[metric] for block, s in rest)
            for model in self.costs
            for metric, base in model.base.items()
        }

    @cached_property
    def _coupled(self) -> Mapping[str, PlanCosts]:
        """The metrics that are known of whole plans only."""
        settings = {name for s in self.full.sublayers for name, _ in s.settings}
        models = [model for model in self.costs if isinstance(model, PlanCosts)]
        return {metric: model for model in models for metric in model.coupled(settings)}

    @cached_property
    def _additive(self) -> bool:
        return all(len(genes) == 1 for genes in self._groups.values())

    @cached_property
    def _tables(self) -> Mapping[str, CostTable]:
        """Of an additive space."""
        return {metric: self._table(metric, self.dense, base) for metric, base in self._fixed.items()}

    def _table(self, metric: str, around: Candidate, base: float) -> CostTable:
        """What each option costs while its sublayer's other genes are as they are `around`."""
        rows: list[tuple[float, ...]] = [()] * len(self.genes)
        indices = around.indices()
        for position, genes in self._groups.items():
            choice = tuple(indices[g] for g in genes)
            for at, gene in enumerate(genes):
                among = ((*choice[:at], o, *choice[at + 1 :]) for o in range(len(_options(self.genes[gene]))))
                rows[gene] = _monotone(tuple(self._price(position, c)[metric] for c in among))
        return CostTable(metric, base, tuple(rows))

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        """All costs."""
        indices = candidate.indices()
        if self._additive:
            picked = np.array(indices)
            total = {metric: table.total(picked) for metric, table in self._tables.items()}
        else:
            total = dict(self._fixed)
            for position, genes in self._groups.items():
                for metric, value in self._price(position, tuple(indices[g] for g in genes)).items():
                    total[metric] += value
        return total | self._whole(candidate)

    def _whole(self, candidate: Candidate) -> dict[str, float]:
        """The coupled metrics."""
        plan = self.decode(candidate) if self._coupled else self.full
        priced = {id(model): model.plan(plan) for model in self._coupled.values()}
        return {metric: priced[id(model)][metric] for metric, model in self._coupled.items()}

    def cost_table(self, metric: str) -> CostTable | None:
        """The additive table of a metric; SpaceError for an unknown one.

        None where a sublayer has several genes, or the metric is known of whole plans only.
        """
        if metric not in self._fixed:
            raise SpaceError(f"{metric!r} is not a cost; costs: {', '.join(sorted(self._fixed))}")
        return self._tables[metric] if self._additive and metric not in self._coupled else None

    def local_table(self, metric: str, around: Candidate) -> CostTable:
        """A table that is exact at `around` and for every change of one gene of it."""
        exact = self.cost_table(metric)
        if exact is not None:
            return exact
        if metric in self._coupled:
            table, indices = self._changes(metric, around), around.indices()
        else:
            table, indices = self._table(metric, around, 0.0), around.indices()
        return replace(table, base=self.cost(around)[metric] - table.total(indices))

    def _changes(self, metric: str, around: Candidate) -> CostTable:
        """As `_table`, every change of one gene priced as a whole plan."""
        rows = [
            tuple(self._whole(around.with_value(at, o))[metric] for o in range(len(_options(gene))))
            for at, gene in enumerate(self.genes)
        ]
        return CostTable(metric, 0.0, tuple(map(_monotone, rows)))

    def check(self, constraints: Sequence[Constraint]) -> None:
        """Raise InfeasibleError when a constraint is broken by all candidates."""
        least, dense = self._corners.least, dense_costs(self)
        for c in constraints:
            if c.violation(least):
                raise InfeasibleError(
                    f"constraints.{c.metric}={c.text or c.bound} cannot be met: the smallest feasible value is "
                    f"{least[c.metric]:.6g} ({least[c.metric] / dense[c.metric]:.3f}x of dense)"
                )

    @cached_property
    def _corners(self) -> Corners:
        kinds = sorted({g.setting for g in self.genes if isinstance(g, OptionGene)}) if self._coupled else []
        return corners(self.genes, self.cost, kinds)

    def repair(
        self, candidate: Candidate, constraints: Sequence[Constraint], rng: np.random.Generator
    ) -> Candidate:
        """Lower random genes, one option at a time, until every constraint holds, then raise again what still fits.

        At most as many steps as there are options in the space. Costs that rise as others fall may break a bound still.
        """
        self.check(constraints)
        before = np.array(candidate.indices())
        walk: Walk | StepWalk
        if self._additive and not any(c.metric in self._coupled for c in constraints):
            walk = Walk(candidate, constraints, [self._tables[c.metric] for c in constraints])
        else:
            walk = StepWalk(candidate, constraints, self.cost, self._corners.tops)
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
