# mypy: disable-error-code="no-untyped-call, misc"
"""An OLMoE whose blocks differ in size: a head has the size it had, `kept_heads` says how many are left."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import OlmoeConfig, OlmoeForCausalLM, OlmoeModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.olmoe.modeling_olmoe import OlmoeDecoderLayer, OlmoeRMSNorm

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneOlmoeConfig(MixedConfig, OlmoeConfig):
    """OLMoE sizes with exceptions per block."""

    model_type = "autoprune_olmoe"


class AutopruneOlmoeDecoderLayer(MixedBlock, OlmoeDecoderLayer):
    """One block with its own sizes."""

    def resize(self: Any, sizes: Any) -> None:
        """The stock attention has as many heads as fill the hidden size; whole KV groups are kept."""
        attn = self.self_attn
        hidden, bias = attn.q_proj.in_features, attn.q_proj.bias is not None
        rows = {"q": sizes.kept_heads * attn.head_dim}
        rows["k"] = rows["v"] = rows["q"] // attn.num_key_value_groups
        for name, size in rows.items():
            setattr(attn, f"{name}_proj", nn.Linear(hidden, size, bias=bias))
        attn.o_proj = nn.Linear(rows["q"], hidden, bias=bias)
        for name in ("q", "k"):
            eps = getattr(attn, f"{name}_norm").variance_epsilon
            setattr(attn, f"{name}_norm", OlmoeRMSNorm(rows[name], eps=eps))


class AutopruneOlmoeModel(MixedModel, OlmoeModel):
    """The stack of blocks."""

    config_class = AutopruneOlmoeConfig
    block = AutopruneOlmoeDecoderLayer
    output = MoeModelOutputWithPast


class AutopruneOlmoeForCausalLM(MixedForCausalLM, OlmoeForCausalLM):
    """`OlmoeForCausalLM` over blocks of different sizes."""

    config_class = AutopruneOlmoeConfig
    stack = AutopruneOlmoeModel
