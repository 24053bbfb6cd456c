"""The OLMoE family: experts, and norms over the queries and over the keys of all heads at once."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import OlmoeForCausalLM

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_olmoe import AutopruneOlmoeForCausalLM
from autoprune.models.base import Units, Weights
from autoprune.models.experts import ROUTED, STACKED, ExpertDecoder
from autoprune.models.layout import ATTENTION, Layout
from autoprune.space import Kind


class OlmoeAdapter(ExpertDecoder):
    """Runs and slices an `OlmoeForCausalLM`; its norms of queries and keys see the kept heads only."""

    layout = Layout(
        OlmoeForCausalLM,
        AutopruneOlmoeForCausalLM,
        {**ATTENTION, "self_attn.q_norm": ("q_whole_norm",), "self_attn.k_norm": ("k_whole_norm",)},
        ROUTED,
        stacked=STACKED,
        heads="kept_heads",
        groups=None,
        fixed_heads=True,
        experts="num_experts",
        experts_per_token="num_experts_per_tok",
    )

    def check(self, config: Any) -> None:
        """Refuses clipped queries, keys and values, too."""
        super().check(config)
        if config.clip_qkv is not None:
            raise UnsupportedModelError(
                f"olmoe with clip_qkv={config.clip_qkv} is not supported, only without"
            )

    def project(self, name: str, normed: Tensor, weights: Weights) -> Tensor:
        """Normed before they are heads."""
        found = super().project(name, normed, weights)
        scale = weights.get(f"{name}_whole_norm")
        return found if scale is None else self.norm(found, scale, None, self._eps)

    def units(self, kind: Kind) -> Units:
        """A KV group owns its part of both norms."""
        found = super().units(kind)
        if kind == "ffn":
            return found
        more = {f"{name}_whole_norm": found.slices[name] for name in ("q", "k")}
        return Units(found.count, {**found.slices, **more})
