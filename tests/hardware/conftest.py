"""A tiny Llama and the physically smaller models of its plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from autoprune.export.assemble import assemble
from autoprune.models import adapter_for
from autoprune.shape import Shape
from autoprune.space import Plan, SublayerPlan


@pytest.fixture(scope="session")
def dense() -> Any:
    """Two blocks, two KV groups of two heads, FFN width 32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, max_position_embeddings=64, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def shape() -> Shape:
    """The sizes of `dense`."""
    return Shape(
        "llama", 2, 16, 4, 2, 4, 32, 64, tied=False, norm_params=16, bytes_per_value=4, dtype="float32"
    )


@pytest.fixture(scope="session")
def build(dense: Any) -> Callable[[Plan], PreTrainedModel]:
    """Plan -> smaller model, keeping the first groups and the first neurons."""

    def weights(block: int, plan: SublayerPlan) -> Mapping[str, Tensor]:
        layer = dense.model.layers[block]
        if plan.kind == "ffn":
            n, mlp = int(plan.get("width")), layer.mlp
            inward = {"gate": mlp.gate_proj.weight[:n], "up": mlp.up_proj.weight[:n]}
            return inward | {
                "down": mlp.down_proj.weight[:, :n],
                "norm": layer.post_attention_layernorm.weight,
            }
        keys, attention = 4 * int(plan.get("kv_groups")), layer.self_attn
        kv = {"k": attention.k_proj.weight[:keys], "v": attention.v_proj.weight[:keys]}
        q, o = attention.q_proj.weight[: 2 * keys], attention.o_proj.weight[:, : 2 * keys]
        return kv | {"q": q, "o": o, "norm": layer.input_layernorm.weight}

    return lambda plan: assemble(adapter_for(dense), plan, weights, torch.float32)
