"""The sizes of a model that costs and spaces need, as plain data (stdlib only)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from autoprune.kv_policy import held_values
from autoprune.space import Plan, SublayerPlan


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder whose blocks are alike. `bytes_per_value` is that of the checkpoint's dtype."""

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
    bytes_per_value: int = 2
    dtype: str = "bfloat16"

    @property
    def heads_per_group(self) -> int:
        """Query heads that share one KV group."""
        return self.heads // self.kv_groups


@dataclass(frozen=True)
class AnalyticCosts:
    """Parameters, FLOPs, KV bytes and bytes of a structured decoder plan (a `CostModel`).

    `params` counts what is inside blocks (norms included; a sublayer that is gone takes its norm along),
    `params_total` everything; `flops` is one prefill of `tokens` tokens with 2 FLOPs per multiply-add in matrix
    products, head included; `kv_bytes` is the cache at a context of `tokens`,
    cut to what its policy keeps; `bytes` is the checkpoint's tensors.
    """

    shape: Shape
    tokens: int = 256

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, learned positions, final norm and head."""
        s = self.shape
        embedding = s.vocabulary * s.hidden
        outside = embedding * (1 if s.tied else 2) + s.norm_params + s.position_params
        return {
            "params": 0.0,
            "params_total": float(outside),
            "flops": 2.0 * self.tokens * embedding,
            "kv_bytes": 0.0,
            "bytes": float(outside * s.bytes_per_value),
        }

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Costs of one sublayer; all zero when it is gone."""
        if plan.gone:
            return {"params": 0.0, "params_total": 0.0, "flops": 0.0, "kv_bytes": 0.0, "bytes": 0.0}
        params, flops, kv = self._attention(block, plan) if plan.kind == "attention" else self._ffn(plan)
        size = self.shape.bytes_per_value
        return {
            "params": float(params),
            "params_total": float(params),
            "flops": float(flops),
            "kv_bytes": float(kv * size),
            "bytes": float(params * size),
        }

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
        return weights + biases + norms, 2 * t * weights + scores, held_values(plan, s.head_dim, cached)

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
            window = shape.windows[at // 2] if shape.windows else None
            cached = context if window is None else min(context, window - 1)
            held = held_values(sublayer, shape.head_dim, cached)
            total += 2.0 * shape.heads_per_group * held  # `costs` has the token's own
    return total
