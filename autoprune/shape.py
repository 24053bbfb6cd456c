"""The sizes of a model that costs and spaces need, as plain data (stdlib only)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

from autoprune.kv_policy import held_values
from autoprune.patterns import masks_of, stored_bytes
from autoprune.space import KEEP, PROMPT, Plan, SublayerPlan, token_keep

PAGERANK_STEPS = 5
Task = Literal["text", "sentences", "images"]  # what a model reads: text to go on with, or items to classify

GROUP_HEADS = "group_heads"  # the plan setting that says how many query heads each KV group keeps
EXPERT_MULTIPLE = 8  # of an expert's width: grouped products want rows of whole 16 bytes, in bfloat16 too


@dataclass(frozen=True)
class Shape:
    """Sizes of a model whose blocks are alike. `bytes_per_value` is that of the checkpoint's dtype."""

    model_type: str
    blocks: int
    hidden: int
    heads: int
    kv_groups: int
    head_dim: int
    ffn: int
    vocabulary: int
    tied: bool
    gated: bool = True
    attention_bias: bool = False  # of q, k and v, and of o unless `output_bias` says otherwise
    ffn_bias: bool = False
    norm_params: int = 0  # of one norm
    output_bias: bool | None = None  # whether o has a bias; None: as q, k and v
    head_norm_params: int = 0  # of the norms of queries and keys
    group_norm_params: int = 0  # of norms over all heads at once: the share of one KV group
    position_params: int = 0  # of learned positions
    windows: tuple[int | None, ...] = ()  # tokens each block attends to; None or empty: all of them
    task: Task = "text"
    classes: int = 0  # of a classifier
    tokens: int = 0  # that an image has, where images are read
    specials: int = 0  # tokens at the front that stand for the whole
    outside_params: int | None = None  # of all that is not in blocks; None: what the fields above say
    outside_flops: int = 0  # the same, of one item of a classifier
    bytes_per_value: int = 2
    dtype: str = "bfloat16"
    experts: int = 0  # in each block, each `ffn` wide; 0: an FFN without router
    experts_per_token: int = 0
    shared_ffn: int = 0  # width of the expert that every token uses beside its own, through a gate; 0: none

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV group."""
        return self.heads // self.kv_groups


@dataclass(frozen=True)
class AnalyticCosts:
    """Parameters, FLOPs, KV bytes and bytes of a structured plan (a `CostModel`); a classifier has no KV bytes.

    `params` counts what is inside blocks (norms included; a sublayer that is gone takes its norm along),
    `params_total` everything; `flops` is one prefill of `tokens` tokens with 2 FLOPs per multiply-add in matrix
    products, head included; `kv_bytes` is the cache at a context of `tokens`, cut to what its policy keeps
    or, of a prompt of `tokens`, to what is left of it in each block; `bytes` is
    the checkpoint's tensors. Of a mixture of experts `flops` counts the experts that a token uses, and `expert_bytes`
    is what all of them take in the checkpoint, without router and shared expert. Of a masked matrix only kept weights
    count; in `bytes` it is packed, its index included, where that is smaller.
    """

    shape: Shape
    tokens: int = 256
    _passed: dict[tuple[int, SublayerPlan, int], tuple[Mapping[str, float], int]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, learned positions, final norm and head."""
        s = self.shape
        embedding = s.vocabulary * s.hidden
        outside = embedding * (1 if s.tied else 2) + s.norm_params + s.position_params
        flops = 2.0 * self.tokens * embedding
        if s.outside_params is not None:
            outside, flops = s.outside_params, float(s.outside_flops)
        return {
            **self._nothing,
            "params_total": float(outside),
            "flops": flops,
            "bytes": float(outside * s.bytes_per_value),
        }

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Costs of one sublayer; all zero when it is gone."""
        if plan.gone:
            return self._nothing
        params, flops, kv = self._attention(block, plan) if plan.kind == "attention" else self._ffn(plan)
        size = self.shape.bytes_per_value
        masked, active, unstored = self._masked(plan)
        found = {
            **self._nothing,
            **self._expert_bytes(plan, unstored),
            "params": float(params - masked),
            "params_total": float(params - masked),
            "flops": float(flops - 2 * self.tokens * active),
            "kv_bytes": float(kv * size),
            "bytes": float(params * size - unstored),
        }
        return {name: value for name, value in found.items() if name in self._nothing}

    def coupled(self, settings: Collection[str]) -> tuple[str, ...]:
        """FLOPs, and KV bytes where tokens go for good, depend on the tokens that earlier blocks left over."""
        found = ("flops",) if any(name.startswith(KEEP) for name in settings) else ()
        return (*found, "kv_bytes") if f"{KEEP}{PROMPT}" in settings else found

    def plan(self, plan: Plan) -> dict[str, float]:
        """What is `coupled` of a plan that drops tokens on the way.

        An attention reads, and where tokens go for good keeps, what came in; all else reads what it left over.
        """
        coupled = self.coupled({name for s in plan.sublayers for name, _ in s.settings})
        total, tokens = {metric: self.base[metric] for metric in coupled}, self.tokens
        for at, sublayer in enumerate(plan.sublayers):
            known = (at // 2, sublayer, tokens)
            if known not in self._passed:
                self._passed[known] = self._pass(*known)
            costs, tokens = self._passed[known]
            for metric in coupled:
                total[metric] += costs[metric]
        return total

    def _pass(self, block: int, sublayer: SublayerPlan, tokens: int) -> tuple[Mapping[str, float], int]:
        """Costs of a sublayer that so many tokens enter, and how many it leaves over."""
        costs, keep = replace(self, tokens=tokens).sublayer(block, sublayer), token_keep(sublayer)
        if keep is None:
            return costs, tokens
        left = kept_count(tokens, keep[1], self.shape.specials)
        heads = int(sublayer.get("kv_groups"))
        ranking = ranking_flops(keep[0], tokens, tokens - left, heads, self.shape)
        return {**costs, "flops": costs["flops"] + ranking}, left

    def _masked(self, plan: SublayerPlan) -> tuple[int, int, int]:
        """Weights that masks leave out, those among them that a token would use, and the bytes that packing saves."""
        weights, unstored, size = 0, 0, self.shape.bytes_per_value
        sizes, (experts, used) = matrices(self.shape, plan), self._copies(plan)
        for name, (pattern, option) in masks_of(plan).items():
            rows, columns = sizes[name]
            weights += rows * columns - pattern.kept(rows, columns, option)
            unstored += rows * columns * size - stored_bytes(pattern, rows, columns, option, size)
        return experts * weights, used * weights, experts * unstored

    def _copies(self, plan: SublayerPlan) -> tuple[int, int]:
        """How often a sublayer has each of its matrices, and how many of them a token uses."""
        if plan.kind == "attention" or not self.shape.experts:
            return 1, 1
        count = int(plan.get("experts", self.shape.experts))
        return count, min(count, int(plan.get("experts_per_token", self.shape.experts_per_token)))

    def _attention(self, block: int, plan: SublayerPlan) -> tuple[int, int, int]:
        s, t = self.shape, self.tokens
        groups = int(plan.get("kv_groups"))
        queries, keys = groups * group_heads(s, plan) * s.head_dim, groups * s.head_dim
        weights = 2 * s.hidden * (queries + keys)
        biases = queries + 2 * keys if s.attention_bias else 0
        biases += s.hidden if (s.attention_bias if s.output_bias is None else s.output_bias) else 0
        scores = 2 * 2 * t * t * queries  # both products, counted in full as the dense kernel computes them
        window = s.windows[block] if s.windows else None
        cached = (
            t if window is None else min(t, window - 1)
        )  # the newest token's own are not kept for the next
        norms = s.norm_params + s.head_norm_params + groups * s.group_norm_params
        return weights + biases + norms, 2 * t * weights + scores, held_values(plan, s.head_dim, cached)

    def _ffn(self, plan: SublayerPlan) -> tuple[int, int, int]:
        s = self.shape
        inward = 2 if s.gated else 1
        width = int(plan.get("width"))
        weights = active = (inward + 1) * s.hidden * width
        if s.experts:
            count, used = self._copies(plan)
            beside = s.hidden * count  # the router
            if s.shared_ffn:
                beside += (inward + 1) * s.hidden * s.shared_ffn + s.hidden
            weights, active = count * weights + beside, used * weights + beside
        biases = inward * width + s.hidden if s.ffn_bias else 0
        return weights + biases + s.norm_params, 2 * self.tokens * active, 0

    def _expert_bytes(self, plan: SublayerPlan, unstored: int) -> dict[str, float]:
        s = self.shape
        if not s.experts or plan.kind == "attention":
            return {}
        values = (
            int(plan.get("experts", s.experts)) * (3 if s.gated else 2) * s.hidden * int(plan.get("width"))
        )
        return {"expert_bytes": float(values * s.bytes_per_value - unstored)}

    @cached_property
    def _nothing(self) -> dict[str, float]:
        names = ("params", "params_total", "flops", "bytes")
        cached = ("kv_bytes",) if self.shape.task == "text" else ()
        return dict.fromkeys((*names, *cached, *(("expert_bytes",) if self.shape.experts else ())), 0.0)


def matrices(shape: Shape, plan: SublayerPlan) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the matrices of a sublayer, by the names that adapters use; of experts those of each."""
    if plan.kind == "attention":
        groups = int(plan.get("kv_groups"))
        queries, keys = groups * group_heads(shape, plan) * shape.head_dim, groups * shape.head_dim
        inward, inner = {"q": queries, "k": keys, "v": keys}, ("o", queries)
    else:
        width = int(plan.get("width"))
        inward, inner = {"gate": width} if shape.gated else {}, ("down", width)
        inward["up"] = width
    found = {name: (rows, shape.hidden) for name, rows in inward.items()}
    return {**found, inner[0]: (shape.hidden, inner[1])}


def group_heads(shape: Shape, plan: SublayerPlan) -> int:
    """Query heads that each KV group of an attention keeps."""
    return int(plan.get(GROUP_HEADS, shape.heads_per_group))


def kept_count(tokens: int, percent: int, specials: int) -> int:
    """How many of so many tokens are kept: the special ones, and this share of the others, rounded up."""
    free = max(0, tokens - specials)
    return tokens - free + -(-free * percent // 100)


def ranking_flops(rule: str, tokens: int, fewer: int, heads: int, shape: Shape) -> float:
    """FLOPs of ranking so many tokens: what is read off attention matrices is free, products are not."""
    if rule == "pagerank":
        return 2.0 * PAGERANK_STEPS * heads * tokens**2
    if rule != "merge":
        return 0.0
    rounds, free = 0, tokens - shape.specials
    while fewer > 0 and free > 1:
        drawn = min(fewer, (free + 1) // 2)
        free, fewer, rounds = free - drawn, fewer - drawn, rounds + 1
    return 2.0 * rounds * tokens**2 * shape.head_dim


def full_plan(shape: Shape) -> Plan:
    """The plan that keeps everything."""
    return Plan.of([(shape.kv_groups, shape.ffn)] * shape.blocks)


def decode_flops(shape: Shape, plan: Plan, context: int) -> float:
    """FLOPs of one token after `context` others, which are in the KV cache, counted as `AnalyticCosts` does."""
    costs, left = AnalyticCosts(shape, 1), context
    total = costs.base["flops"]
    for at, sublayer in enumerate(plan.sublayers):
        if sublayer.gone:
            continue
        total += costs.sublayer(at // 2, sublayer)["flops"]
        if sublayer.kind == "attention":
            window = shape.windows[at // 2] if shape.windows else None
            cached = left if window is None else min(left, window - 1)
            held = held_values(sublayer, shape.head_dim, cached)
            total += 2.0 * group_heads(shape, sublayer) * held  # `costs` has the token's own
            keep = token_keep(sublayer)
            left = kept_count(left, keep[1], shape.specials) if keep and keep[0] == PROMPT else left
    return total
