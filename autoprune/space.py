"""Genes, candidates, plans and additive costs: the search space as plain data (stdlib and numpy only)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import SpaceError

if TYPE_CHECKING:
    from autoprune.objective import Constraint

Kind = Literal["attention", "ffn"]
KINDS: tuple[Kind, ...] = ("attention", "ffn")  # in depth order within a block
Scalar = int | float | str


@dataclass(frozen=True)
class OptionGene:
    """A site's search variable: one of an ordered tuple of options, smallest first.

    A candidate holds the *index* of the option; `setting` is the name under which the option enters the plan of
    sublayer (`block`, `kind`). Cost never falls when the index rises.
    """

    block: int
    kind: Kind
    setting: str
    options: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.options or list(self.options) != sorted(set(self.options)):
            raise SpaceError(f"{self.name} has options {self.options}: they must rise and there must be some")

    @property
    def name(self) -> str:
        """Readable and unique within a space, e.g. `block3.ffn.width`."""
        return f"block{self.block}.{self.kind}.{self.setting}"


@dataclass(frozen=True)
class ArrayGene:
    """A bounded float array, e.g. an expert merge matrix; a candidate holds it flattened, row by row."""

    block: int
    kind: Kind
    setting: str
    shape: tuple[int, ...]
    low: float
    high: float

    @property
    def name(self) -> str:
        """Readable and unique within a space."""
        return f"block{self.block}.{self.kind}.{self.setting}"


Gene = OptionGene | ArrayGene


@dataclass(frozen=True)
class Candidate:
    """One value per gene: an option's index, or the flattened array of an ArrayGene."""

    values: tuple[int | tuple[float, ...], ...]

    def with_value(self, gene: int, value: int) -> Candidate:
        """A copy with one gene changed."""
        return Candidate(self.values[:gene] + (value,) + self.values[gene + 1 :])

    def indices(self) -> tuple[int, ...]:
        """The option indices; raises SpaceError when there are array genes."""
        if not {*map(type, self.values)} <= {int}:
            raise SpaceError("this searcher takes option genes only; the space holds array genes")
        return self.values  # type: ignore[return-value]

    def to_json(self) -> str:
        """Canonical JSON."""
        return json.dumps(self.values, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Candidate:
        """Exact inverse of `to_json`."""
        return Candidate(tuple(tuple(v) if isinstance(v, list) else int(v) for v in json.loads(text)))


def is_mask(setting: str) -> bool:
    """Whether a plan setting says how much of a matrix is kept in place: named MATRIX.PATTERN, as in `up.4`."""
    return "." in setting


KEEP = "keep_"  # and the name of a rule: the share of its tokens, in per cent, that an attention hands on


PREFILL = "prefill"  # the rule of decoders: for tokens of the prompt, which may come back
PROMPT = "prompt"  # the same for good: what a block drops, no later token sees from there on


def token_keep(plan: SublayerPlan | None) -> tuple[str, int] | None:
    """By which rule a sublayer drops tokens, and how many per cent of them it keeps; None: it keeps all."""
    settings = () if plan is None or plan.gone else plan.settings
    found = [(n.removeprefix(KEEP), int(v)) for n, v in settings if n.startswith(KEEP)]
    return next((keep for keep in found if keep[1] < 100), None)


@dataclass(frozen=True)
class SublayerPlan:
    """What one sublayer keeps: settings in name order. A `gone` sublayer is skipped altogether."""

    kind: Kind
    settings: tuple[tuple[str, Scalar], ...]

    @staticmethod
    def of(kind: Kind, **settings: Scalar) -> SublayerPlan:
        """Build from keywords."""
        return SublayerPlan(kind, tuple(sorted(settings.items())))

    def get(self, name: str, default: Scalar | None = None) -> Scalar:
        """One setting; `default`, or SpaceError where there is none, for a name that the plan does not set."""
        for key, value in self.settings:
            if key == name:
                return value
        if default is not None:
            return default
        raise SpaceError(
            f"a plan's {self.kind} has no setting {name!r}: it has {[k for k, _ in self.settings]}"
        )

    @property
    def unmasked(self) -> SublayerPlan:
        """The same sublayer with every matrix whole."""
        return SublayerPlan(self.kind, tuple((k, v) for k, v in self.settings if not is_mask(k)))

    @cached_property
    def text(self) -> str:
        """The settings as canonical JSON; kept, because spaces hand out the same sublayers again and again."""
        return json.dumps(dict(self.settings), sort_keys=True, separators=(",", ":"))

    @property
    def gone(self) -> bool:
        """The zero option of the width, of the KV groups or of the experts: the sublayer is removed."""
        return any(name in ("kv_groups", "width", "experts") and value == 0 for name, value in self.settings)


@dataclass(frozen=True)
class Plan:
    """The decoded candidate: sublayers in depth order, attention and FFN of block 0, then of block 1, …"""

    sublayers: tuple[SublayerPlan, ...]

    @staticmethod
    def of(blocks: Sequence[tuple[int, int]]) -> Plan:
        """A structured plan from (KV groups, FFN width) of each block."""
        pairs = (
            (SublayerPlan.of("attention", kv_groups=g), SublayerPlan.of("ffn", width=w)) for g, w in blocks
        )
        return Plan(tuple(s for pair in pairs for s in pair))

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.sublayers) // 2

    @property
    def unmasked(self) -> Plan:
        """The same plan with every matrix whole."""
        return Plan(tuple(s.unmasked for s in self.sublayers))

    def at(self, block: int, kind: Kind) -> SublayerPlan:
        """One sublayer."""
        return self.sublayers[2 * block + KINDS.index(kind)]

    def widths(self) -> list[tuple[int, int]]:
        """(KV groups, FFN width) of each block."""
        return [
            (int(self.at(b, "attention").get("kv_groups")), int(self.at(b, "ffn").get("width")))
            for b in range(self.blocks)
        ]

    def to_json(self) -> str:
        """Canonical JSON, blocks as objects."""
        halves = [s.text for s in self.sublayers]
        pairs = zip(halves[::2], halves[1::2], strict=True)
        blocks = ",".join(f'{{"attention":{a},"ffn":{f}}}' for a, f in pairs)
        return f'{{"blocks":[{blocks}]}}'

    @staticmethod
    def from_json(text: str) -> Plan:
        """Exact inverse of `to_json`; raises SpaceError on anything else."""
        try:
            blocks = json.loads(text)["blocks"]
            return Plan(tuple(SublayerPlan.of(k, **b[k]) for b in blocks for k in KINDS))
        except (ValueError, KeyError, TypeError) as error:
            raise SpaceError(f"not a plan: {text[:80]!r}") from error

    @cached_property
    def key(self) -> str:
        """Digest under which results are remembered: 12 hexadecimal digits."""
        return digest(self.to_json())[:12]


@dataclass(frozen=True)
class CostTable:
    """An additive cost: `base + sum of entries[gene][option]`."""

    metric: str
    base: float
    entries: tuple[tuple[float, ...], ...]

    def total(self, indices: Sequence[int] | NDArray[np.int64]) -> float:
        """Cost of a candidate given as option indices; summed in gene order."""
        if len(indices) != len(self.entries):
            raise ValueError(f"{len(indices)} options for {len(self.entries)} genes")
        if not len(indices):
            return self.base
        total = float(np.cumsum(self._padded[self._genes, indices])[-1])  # in order, unlike np.sum
        if total != total:
            raise IndexError(f"a gene has no such option among {indices}")
        return self.base + total

    @cached_property
    def _padded(self) -> NDArray[np.float64]:
        """`[gene, option]`: the entries; NaN beyond a gene's last option."""
        rows = np.full((len(self.entries), max(map(len, self.entries), default=0)), np.nan)
        for gene, row in enumerate(self.entries):
            rows[gene, : len(row)] = row
        return rows

    @cached_property
    def _genes(self) -> NDArray[np.int64]:
        return np.arange(len(self.entries))

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """`[gene, option]`: what the option costs more than the one below it; 0 at option 0 and beyond the last."""
        steps = np.zeros((len(self.entries), max(map(len, self.entries), default=0) + 1))
        for gene, row in enumerate(self.entries):
            steps[gene, 1 : len(row)] = np.diff(row)
        return steps

    @property
    def smallest(self) -> float:
        """Cost of the smallest candidate."""
        return self.base + sum(row[0] for row in self.entries)

    @property
    def dense(self) -> float:
        """Cost of the full candidate."""
        return self.base + sum(row[-1] for row in self.entries)


class CostModel(Protocol):
    """Prices sublayers; a plan costs `base` plus the sum over its sublayers. Never touches a model.

    Where what a sublayer costs depends on the sublayers before it, the model is a `PlanCosts`, too.
    """

    @property
    def base(self) -> Mapping[str, float]:
        """Cost of what no plan changes, per metric."""

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Cost of one sublayer, per metric of `base`."""


@runtime_checkable
class PlanCosts(Protocol):
    """A cost model some of whose metrics do not add up over sublayers."""

    def coupled(self, settings: Collection[str]) -> Collection[str]:
        """The metrics that do not add up when plans have these settings."""

    def plan(self, plan: Plan) -> Mapping[str, float]:
        """Those metrics, of a whole plan."""


class Space(Protocol):
    """What may change, and what it costs."""

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The search variables, in depth order."""

    @property
    def dense(self) -> Candidate:
        """The candidate that keeps everything."""

    def decode(self, candidate: Candidate) -> Plan:
        """The plan of a candidate; raises SpaceError when it is not of this space."""

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        """All costs; never touches a model."""

    def cost_table(self, metric: str) -> CostTable | None:
        """Per (gene, option) costs; None when the metric is not additive over genes."""

    def local_table(self, metric: str, around: Candidate) -> CostTable:
        """A table that is exact at `around` and for every change of one gene of it; the additive one where there is."""

    def repair(
        self, candidate: Candidate, constraints: Sequence[Constraint], rng: np.random.Generator
    ) -> Candidate:
        """A candidate within all constraints, lowering as few options as needed; bounded by the number of options.

        Raises InfeasibleError naming the bound and the smallest feasible value.
        """

    def digest(self) -> str:
        """Identifies genes and options, so that a ledger of another space is refused."""


class OptionSpace(Space, Protocol):
    """A space whose sites may be given options of their own, by phases that rebuild ladders."""

    def with_options(self, options: Mapping[str, tuple[int, ...]]) -> OptionSpace:
        """The same space with other options for some genes, by gene name; raises SpaceError for an unknown name.

        Its largest candidate need not be the dense model.
        """


def dense_costs(space: Space) -> Mapping[str, float]:
    """What ratios are to: the costs of the dense candidate, or those of a larger model that the space refers to."""
    return {**space.cost(space.dense), **getattr(space, "reference", {})}


def plan_cost(plan: Plan, model: CostModel) -> dict[str, float]:
    """All costs of a plan: base plus its sublayers, summed in depth order, or what the model says of the whole."""
    total = dict(model.base)
    for index, sublayer in enumerate(plan.sublayers):
        for metric, value in model.sublayer(index // 2, sublayer).items():
            total[metric] += value
    if isinstance(model, PlanCosts) and model.coupled({n for s in plan.sublayers for n, _ in s.settings}):
        total |= model.plan(plan)
    return total


def digest(*parts: Any) -> str:
    """SHA-256 over canonical JSON of plain data, as hexadecimal digits."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
