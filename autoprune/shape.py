"""The sizes of a model that costs and spaces need, as plain data (stdlib only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from autoprune.space import Plan, SublayerPlan

Task = Literal["text", "sentences", "images"]  # what a model reads: text to go on with, or items to classify


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

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV group."""
        return self.heads // self.kv_groups


@dataclass(frozen=True)
class AnalyticCosts:
    """Parameters, FLOPs, KV bytes and bytes of a structured plan (a `CostModel`); a classifier has no KV bytes.

    `params` counts what is inside blocks (norms included; a sublayer that is gone takes its norm along),
    `params_total` everything; `flops` is one prefill of `tokens` tokens with 2 FLOPs per multiply-add in matrix
    products, head included; `kv_bytes` is the cache at a context of `tokens`; `bytes` is the checkpoint's tensors.
    """

    shape: Shape
    tokens: int = 256

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, learned positions, final norm and head."""
        s = self.shape
        embedding = s.vocabulary * s.hidden
        outside = embedding * (1 if s.tied else 2) + s.norm_params + s.position_params
        flops = 2.0 * self.tokens * embedding
        if s.outside_params is not None:
            outside, flops = s.outside_params, float(s.outside_flops)
        return self._costs(0, flops, 0) | {
            "params_total": float(outside),
            "bytes": float(outside * s.bytes_per_value),
        }

    def _costs(self, params: int, flops: float, cached: int) -> dict[str, float]:
        size = self.shape.bytes_per_value
        found = {
            "params": float(params),
            "params_total": float(params),
            "flops": float(flops),
            "kv_bytes": float(cached * size),
            "bytes": float(params * size),
        }
        if self.shape.task != "text":
            del found["kv_bytes"]
        return found

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Costs of one sublayer; all zero when it is gone."""
        if plan.gone:
            return self._costs(0, 0, 0)
        return self._costs(*(self._attention(block, plan) if plan.kind == "attention" else self._ffn(plan)))

    def _attention(self, block: int, plan: SublayerPlan) -> tuple[int, int, int]:
        s, t = self.shape, self.tokens
        groups = int(plan.get("kv_groups"))
        queries, keys = groups * s.heads_per_group * s.head_dim, groups * s.head_dim
        weights = 2 * s.hidden * (queries + keys)
        biases = queries + 2 * keys if s.attention_bias else 0
        biases += s.hidden if (s.attention_bias if s.output_bias is None else s.output_bias) else 0
        scores = 2 * 2 * t * t * queries  # both products, counted in full as the dense kernel computes them
        window = s.windows[block] if s.windows else None
        cached = (
            t if window is None else min(t, window - 1)
        )  # the newest token's own are not kept for the next
        norms = s.norm_params + s.head_norm_params
        return weights + biases + norms, 2 * t * weights + scores, 2 * keys * cached

    def _ffn(self, plan: SublayerPlan) -> tuple[int, int, int]:
        s = self.shape
        width = int(plan.get("width"))
        inward = 2 if s.gated else 1
        weights = (inward + 1) * s.hidden * width
        biases = inward * width + s.hidden if s.ffn_bias else 0
        return weights + biases + s.norm_params, 2 * self.tokens * weights, 0


def full_plan(shape: Shape) -> Plan:
    """The plan that keeps everything."""
    return Plan.of([(shape.kv_groups, shape.ffn)] * shape.blocks)


def decode_flops(shape: Shape, plan: Plan, context: int) -> float:
    """FLOPs of one token after `context` others, which are in the KV cache, counted as `AnalyticCosts` does."""
    costs = AnalyticCosts(shape, 1)
    total = costs.base["flops"]
    for at, sublayer in enumerate(plan.sublayers):
        if sublayer.gone:
            continue
        total += costs.sublayer(at // 2, sublayer)["flops"]
        if sublayer.kind == "attention":
            queries = int(sublayer.get("kv_groups")) * shape.heads_per_group * shape.head_dim
            window = shape.windows[at // 2] if shape.windows else None
            seen = context + 1 if window is None else min(context + 1, window)
            total += 2.0 * 2 * (seen - 1) * queries  # `costs` has the token's own
    return total
