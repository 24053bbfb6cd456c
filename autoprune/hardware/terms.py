"""What a latency table adds up: of every kind of gene the few numbers that its time is made of (numpy only)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

import numpy as np

from autoprune.errors import SettingError
from autoprune.kv_policy import FULL, GENES, held_values, policy_of
from autoprune.patterns import pattern_of
from autoprune.shape import GROUP_HEADS, Shape, full_plan, kept_count, matrices
from autoprune.space import KEEP, KINDS, Kind, Plan, SublayerPlan, is_mask, token_keep

Options = Mapping[str, Sequence[int]]
Flow = tuple[float, float]  # tokens that enter a sublayer, and that it hands on, as shares of the prompt
WHOLE: Flow = (1.0, 1.0)
SIZES: Mapping[Kind, str] = {"attention": "kv_groups", "ffn": "width"}
EXPERTS = ("experts", "experts_per_token")


@dataclass(frozen=True)
class Part:
    """A number of a table: milliseconds of an option, or of what a name says.

    `after`: it is at least the part before it in its term. `signed`: it may be below zero.
    """

    kind: Kind
    name: str
    option: int = 0
    after: bool = False
    signed: bool = False

    @property
    def text(self) -> str:
        """Readable, e.g. `ffn width 128`."""
        return f"{self.kind} {self.name}" + (f" {self.option}" if self.option else "")


class Term(Protocol):
    """Some parts of one kind of sublayer, and how much of each a sublayer has."""

    @property
    def kind(self) -> Kind:
        """Of sublayer."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """The numbers."""

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Of every part; the sublayer is not gone. Raises SettingError outside what was measured."""


@dataclass(frozen=True)
class Sizes:
    """A dense sublayer by its KV groups or width, between measured options on the line through both."""

    kind: Kind
    options: tuple[int, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """One an option; a larger one is never cheaper."""
        return tuple(Part(self.kind, SIZES[self.kind], o, after=i > 0) for i, o in enumerate(self.options))

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Shares of the neighbouring options; fewer tokens take so much less."""
        name = SIZES[self.kind]
        shares = _between(self.options, int(plan.get(name)), f"{self.kind} {name}")
        tokens = flow[0] if self.kind == "attention" else flow[1]
        return [share * tokens for share in shares]


@dataclass(frozen=True)
class Masks:
    """What masks in one pattern change in matrices of one size, in proportion to what a plan leaves of them."""

    kind: Kind
    names: tuple[str, ...]
    pattern: str
    options: tuple[int, ...]  # below the full one
    shape: Shape
    overhead: bool  # there are plans of several sizes, that tell what does not depend on them

    @property
    def parts(self) -> tuple[Part, ...]:
        """What a masked matrix costs more whatever its size, then for every option the change."""
        label = f"{'+'.join(self.names)}.{self.pattern}"
        rows = [Part(self.kind, label, o, after=i > 0, signed=True) for i, o in enumerate(self.options)]
        return (*([Part(self.kind, f"{label} overhead", signed=True)] if self.overhead else []), *rows)

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Summed over the matrices."""
        full, total, masked = pattern_of(self.pattern).full, np.zeros(len(self.options) + 1), 0
        own, dense = matrices(self.shape, plan), matrices(self.shape, full_plan(self.shape).at(0, self.kind))
        for name in self.names:
            option = int(plan.get(f"{name}.{self.pattern}", full))
            if option < full:
                share = own[name][0] * own[name][1] / (dense[name][0] * dense[name][1])
                label = f"{name}.{self.pattern}"
                total += flow[0] * share * np.array(_between((*self.options, full), option, label))
                masked += 1
        return [*([float(masked)] if self.overhead else []), *total[:-1].tolist()]


@dataclass(frozen=True)
class QueryHeads:
    """What fewer query heads in every KV group change, in proportion to the groups that are kept."""

    options: tuple[int, ...]  # below the full one
    shape: Shape
    kind: Kind = "attention"

    @property
    def parts(self) -> tuple[Part, ...]:
        """One an option; a larger one is never cheaper."""
        return tuple(
            Part(self.kind, GROUP_HEADS, o, after=i > 0, signed=True) for i, o in enumerate(self.options)
        )

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Nothing where a group keeps all its heads."""
        full = self.shape.heads_per_group
        shares = _between((*self.options, full), int(plan.get(GROUP_HEADS, full)), GROUP_HEADS)
        groups = int(plan.get("kv_groups")) / self.shape.kv_groups
        return [flow[0] * groups * share for share in shares[:-1]]


@dataclass(frozen=True)
class CutCache:
    """What a KV cache that throws tokens away costs beside one that keeps all, by the numbers that it holds."""

    shape: Shape
    context: int
    kind: Kind = "attention"

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the policy at work, of it in each KV group, and of all that a full cache holds."""
        return tuple(
            Part(self.kind, f"kv_cache {name}", signed=True) for name in ("policy", "groups", "held")
        )

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Nothing where everything is kept; groups and numbers as shares of the full ones."""
        if FULL not in dict(plan.settings) or policy_of(plan) is None:
            return [0.0] * 3
        groups = int(plan.get("kv_groups")) / self.shape.kv_groups
        whole = 2 * self.shape.kv_groups * self.shape.head_dim * max(self.context, 1)
        return [1.0, groups, held_values(plan, self.shape.head_dim, self.context) / whole]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: what every token pays, and what every expert that some token is sent to does.

    Of T tokens that use k of E experts each, E (1 - (1 - k/E)^T) different experts are hit where they choose evenly.
    """

    shape: Shape
    tokens: Mapping[str, int]  # T, by metric
    kind: Kind = "ffn"

    @property
    def parts(self) -> tuple[Part, ...]:
        """At full sizes: the rest of the layer, its router, hit experts as such and by width, and what tokens use."""
        names = (
            "layer",
            "experts router",
            "experts hit",
            "experts hit width",
            "experts used",
            "experts used width",
        )
        return tuple(Part(self.kind, name) for name in names)

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Each as a share of the dense model's."""
        s, tokens = self.shape, self.tokens[metric]
        count, width = int(plan.get("experts", s.experts)), int(plan.get("width")) / s.ffn
        used = min(count, int(plan.get("experts_per_token", s.experts_per_token)))
        hit = hits(count, used, tokens) / hits(s.experts, s.experts_per_token, tokens)
        active = used / s.experts_per_token
        return [1.0, count / s.experts, hit, hit * width, active, active * width]


@dataclass(frozen=True)
class Tokens:
    """What a sublayer costs however few tokens it reads, and an attention for pairs of them and for ranking them."""

    shape: Shape
    kind: Kind

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the attention five, of the FFN one."""
        more = ("scores", "ranking", "ranking tokens", "ranking pairs") if self.kind == "attention" else ()
        return tuple(Part(self.kind, f"tokens {name}") for name in ("fixed", *more))

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """By the share of the tokens that enters; nothing for ranking where all are handed on."""
        if self.kind == "ffn":
            return [1.0]
        groups = int(plan.get("kv_groups")) / self.shape.kv_groups
        ranked = float(token_keep(plan) is not None)
        share = flow[0]
        return [1.0, groups * share**2, ranked, ranked * share, ranked * groups * share**2]


def flows(plan: Plan, tokens: int, specials: int) -> list[Flow]:
    """What share of so many tokens enters and leaves every sublayer."""
    found, now = list[Flow](), tokens
    for sublayer in plan.sublayers:
        keep = token_keep(sublayer)
        left = now if keep is None else kept_count(now, keep[1], specials)
        found.append((now / tokens, left / tokens))
        now = left
    return found


def drops_tokens(settings: Collection[str]) -> bool:
    """Whether plans with such settings hand on fewer tokens: what a sublayer costs is known of whole plans only."""
    return any(name.startswith(KEEP) for name in settings)


def hits(experts: int, used: int, tokens: int) -> float:
    """Expected number of different experts that so many tokens are sent to."""
    return experts * (1 - (1 - used / experts) ** tokens)


def terms_of(shape: Shape, tokens: Mapping[str, int], context: int, options: Options) -> tuple[Term, ...]:
    """The terms that a model's plans with these options take; `tokens` of a forward pass by metric."""
    found: list[Term] = [Sizes("attention", _nonzero(options["kv_groups"]))]
    if fewer := tuple(o for o in _nonzero(options.get(GROUP_HEADS, ())) if o < shape.heads_per_group):
        found.append(QueryHeads(fewer, shape))
    if GENES & set(options):
        found.append(CutCache(shape, context))
    found.append(Experts(shape, tokens) if shape.experts else Sizes("ffn", _nonzero(options["width"])))
    if drops_tokens(options):
        found += [Tokens(shape, kind) for kind in KINDS]
    return (*found, *_masks(shape, options))


def unpriced(settings: Collection[str], shape: Shape) -> list[str]:
    """Plan settings that no term knows."""
    known = {*SIZES.values(), GROUP_HEADS, *GENES, *(EXPERTS if shape.experts else ())}
    passed = [n for n in settings if shape.task != "text" and n.startswith(KEEP)]
    return sorted(n for n in settings if n not in (*known, *passed) and not is_mask(n))


def _masks(shape: Shape, options: Options) -> list[Masks]:
    """One a pattern and size of matrices; experts run as they are, zeros included."""
    found = []
    for kind in KINDS[:1] if shape.experts else KINDS:
        sizes = matrices(shape, full_plan(shape).at(0, kind))
        named = [n.split(".") for n in options if is_mask(n) and n.split(".")[0] in sizes]
        by_size = sorted(named, key=lambda pair: (pair[1], sizes[pair[0]]))
        for (pattern, _), group in groupby(by_size, key=lambda pair: (pair[1], sizes[pair[0]])):
            names = tuple(sorted(name for name, _ in group))
            rows = {o for n in names for o in options[f"{n}.{pattern}"]} - {pattern_of(pattern).full}
            several = len(_nonzero(options[SIZES[kind]])) > 1
            if rows:
                found.append(Masks(kind, names, pattern, tuple(sorted(rows)), shape, several))
    return found


def _nonzero(options: Sequence[int]) -> tuple[int, ...]:
    return tuple(sorted({int(o) for o in options} - {0}))


def _between(options: Sequence[int], value: int, what: str) -> list[float]:
    """Weights of the measured options that make up a value; SettingError beyond them."""
    if not options or not options[0] <= value <= options[-1]:
        span = f"{options[0]:g}..{options[-1]:g}" if options else "nothing"
        raise SettingError(f"{what}={value} is outside the latency table, which measured {span}")
    return [float(np.interp(value, options, row)) for row in np.eye(len(options))]
