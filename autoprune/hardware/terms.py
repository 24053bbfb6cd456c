"""What a latency table adds up: of every kind of gene the few numbers that its time is made of (numpy only)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np

from autoprune.errors import SettingError
from autoprune.hardware.dropping import KeptPromptTokens, PromptTokens, Tokens, drops_tokens
from autoprune.hardware.parts import Flow, Part, Term
from autoprune.kv_policy import FULL, GENES, policy_of
from autoprune.patterns import pattern_of
from autoprune.shape import GROUP_HEADS, Shape, full_plan, matrices
from autoprune.space import KEEP, KINDS, PROMPT, Kind, SublayerPlan, is_mask

Options = Mapping[str, Sequence[int]]
SIZES: Mapping[Kind, str] = {"attention": "kv_groups", "ffn": "width"}
EXPERTS = ("experts", "experts_per_token")


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
        return [share * flow.read(metric) for share in shares]


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
                total += flow.read(metric) * share * np.array(_between((*self.options, full), option, label))
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
        return [flow.read(metric) * groups * share for share in shares[:-1]]


@dataclass(frozen=True)
class CutCache:
    """What a KV cache that throws tokens away costs beside one that keeps all; a larger budget is never cheaper.

    Not in proportion to what it holds: matrix products change their way at some sizes.
    """

    gene: str
    options: tuple[int, ...]  # below the one that keeps everything
    shape: Shape
    kind: Kind = "attention"

    @property
    def parts(self) -> tuple[Part, ...]:
        """Of the policy in each KV group, and one an option."""
        rows = [Part(self.kind, self.gene, o, after=i > 0, signed=True) for i, o in enumerate(self.options)]
        return (Part(self.kind, "kv_cache groups", signed=True), *rows)

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Nothing where everything is kept; groups as a share of all."""
        if FULL not in dict(plan.settings) or policy_of(plan) is None:
            return [0.0] * (1 + len(self.options))
        value = min(int(plan.get(self.gene)), self.options[-1])
        return [int(plan.get("kv_groups")) / self.shape.kv_groups, *_between(self.options, value, self.gene)]


@dataclass(frozen=True)
class Experts:
    """A mixture of experts: what every token pays, and what every expert that some token is sent to does.

    Products of few tokens change their way at some widths, so a hit expert has a number for each.
    """

    shape: Shape
    tokens: Mapping[str, int]  # of a forward pass, by metric
    widths: tuple[int, ...]
    skew: float  # of the routing, see `hits`
    kind: Kind = "ffn"

    @property
    def parts(self) -> tuple[Part, ...]:
        """At full sizes: the rest of the layer, its router, what tokens use; hit experts by width."""
        names = ("layer", "experts router", "experts used", "experts used width")
        hit = [Part(self.kind, "experts hit", w, after=i > 0) for i, w in enumerate(self.widths)]
        return (*(Part(self.kind, name) for name in names), *hit)

    def amounts(self, plan: SublayerPlan, metric: str, flow: Flow) -> list[float]:
        """Each as a share of the dense model's."""
        s, tokens = self.shape, self.tokens[metric]
        count, width = int(plan.get("experts", s.experts)), int(plan.get("width"))
        used = min(count, int(plan.get("experts_per_token", s.experts_per_token)))
        hit = hits(count, used, tokens, self.skew)
        hit /= hits(s.experts, s.experts_per_token, tokens, self.skew)
        active = used / s.experts_per_token
        shares = _between(self.widths, width, "ffn width")
        return [1.0, count / s.experts, active, active * width / s.ffn, *(hit * share for share in shares)]


@cache
def hits(experts: int, used: int, tokens: int, skew: float = 0.0) -> float:
    """Expected number of different experts that so many tokens are sent to, each to `used` different ones.

    Expert i of a token's draws has the weight exp(-skew * i): 0 is even routing, E (1 - (1 - k/E)^T). Who is among k
    draws without return is taken as 1 - (1 - weight)^m, with the m that makes it k on average.
    """
    weights = np.exp(-skew * np.arange(experts))
    weights /= weights.sum()
    low, high = np.log(0.5), np.log(1e9)  # of m
    for _ in range(60):
        middle = (low + high) / 2
        enough = (1 - (1 - weights) ** np.exp(middle)).sum() > used
        low, high = (low, middle) if enough else (middle, high)
    chances = (1 - (1 - weights) ** np.exp(low)) if used < experts else np.ones(experts)
    return float((1 - (1 - chances) ** tokens).sum())


def terms_of(
    shape: Shape, tokens: Mapping[str, int], prompt: int, steps: int, options: Options, skew: float = 0.0
) -> tuple[Term, ...]:
    """The terms that a model's plans with these options take.

    `tokens` of a forward pass by metric; steps of decoding after so long a prompt; `skew`: see `hits`.
    """
    found: list[Term] = [Sizes("attention", _nonzero(options["kv_groups"]))]
    if fewer := tuple(o for o in _nonzero(options.get(GROUP_HEADS, ())) if o < shape.heads_per_group):
        found.append(QueryHeads(fewer, shape))
    for gene in sorted(GENES & set(options)):
        if cut := tuple(sorted(options[gene]))[:-1]:
            found.append(CutCache(gene, cut, shape))
    widths = _nonzero(options["width"])
    found.append(Experts(shape, tokens, widths, skew) if shape.experts else Sizes("ffn", widths))
    if drops_tokens(options):
        prompts = KeptPromptTokens if f"{KEEP}{PROMPT}" in options else PromptTokens
        text = shape.task == "text"
        found += [prompts(shape, kind, prompt, steps) if text else Tokens(shape, kind) for kind in KINDS]
    return (*found, *_masks(shape, options))


def unpriced(settings: Collection[str], shape: Shape) -> list[str]:
    """Plan settings that no term knows."""
    known = {*SIZES.values(), GROUP_HEADS, *GENES, *(EXPERTS if shape.experts else ())}
    return sorted(n for n in settings if n not in known and not n.startswith(KEEP) and not is_mask(n))


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
