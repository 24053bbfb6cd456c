"""Tiny dense models and the kept weights of plans, written independently of the engine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Plan, SublayerPlan, plan_cost

BLOCKS, HEADS, GROUPS, HEAD_DIM, HIDDEN, FFN, VOCABULARY = 4, 4, 2, 8, 32, 48, 97
ROPE = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}


def dense(seed: int = 0, **settings: object) -> LlamaForCausalLM:
    """A dense model with random weights, norms and biases included."""
    defaults = {"bos_token_id": None, "eos_token_id": None, "max_position_embeddings": 128}
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        head_dim=HEAD_DIM,
        intermediate_size=FFN,
        **(defaults | settings),
    )
    model = LlamaForCausalLM(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def kept_units(count: int, of: int) -> list[int]:
    """Any kept units will do: the last ones, out of order; all of them in order, to compare exactly."""
    return list(range(of)) if count == of else list(range(of))[::-1][:count]


def rows(units: list[int], size: int) -> list[int]:
    """Rows of a matrix that belong to units of `size` rows."""
    return [unit * size + i for unit in units for i in range(size)]


def weights_of(model: LlamaForCausalLM) -> Callable[[int, SublayerPlan], Mapping[str, Tensor]]:
    """Kept slices of the dense weights."""

    def weights(block: int, kept: SublayerPlan) -> Mapping[str, Tensor]:
        assert not kept.gone, "weights of a sublayer that is gone were asked for"
        layer = model.model.layers[block]
        if kept.kind == "attention":
            groups = kept_units(int(kept.get("kv_groups")), GROUPS)
            key, query = rows(groups, HEAD_DIM), rows(groups, HEAD_DIM * HEADS // GROUPS)
            norm, part, inward = layer.input_layernorm, layer.self_attn, {"q": query, "k": key, "v": key}
            out, outward = "o", query
        else:
            units = kept_units(int(kept.get("width")), FFN)
            norm, part, inward = layer.post_attention_layernorm, layer.mlp, {"gate": units, "up": units}
            out, outward = "down", units
        found = {"norm": norm.weight, out: getattr(part, f"{out}_proj").weight[:, outward]}
        found |= {name: getattr(part, f"{name}_proj").weight[index] for name, index in inward.items()}
        if part.q_proj.bias is not None if kept.kind == "attention" else part.up_proj.bias is not None:
            found |= {f"{n}_bias": getattr(part, f"{n}_proj").bias[index] for n, index in inward.items()}
            found[f"{out}_bias"] = getattr(part, f"{out}_proj").bias
        return found

    return weights


def zeroed(model: LlamaForCausalLM, plan: Plan) -> LlamaForCausalLM:
    """A dense model that computes what the plan computes: columns of lost units set to zero."""
    twin = LlamaForCausalLM(model.config).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        for layer, (groups, width) in zip(twin.model.layers, plan.widths(), strict=True):
            lost = sorted(set(range(GROUPS)) - set(kept_units(groups, GROUPS)))
            layer.self_attn.o_proj.weight[:, rows(lost, HEAD_DIM * HEADS // GROUPS)] = 0
            layer.mlp.down_proj.weight[:, sorted(set(range(FFN)) - set(kept_units(width, FFN)))] = 0
            if not groups and layer.self_attn.o_proj.bias is not None:
                layer.self_attn.o_proj.bias.zero_()
            if not width and layer.mlp.down_proj.bias is not None:
                layer.mlp.down_proj.bias.zero_()
    return twin


def parameters_of(model: LlamaForCausalLM, plan: Plan) -> int:
    """What the cost model says the plan has."""
    config = model.config
    shape = Shape(
        model_type="llama",
        blocks=BLOCKS,
        hidden=HIDDEN,
        heads=HEADS,
        kv_groups=GROUPS,
        head_dim=HEAD_DIM,
        ffn=FFN,
        vocabulary=VOCABULARY,
        tied=config.tie_word_embeddings,
        attention_bias=config.attention_bias,
        ffn_bias=config.mlp_bias,
        norm_params=HIDDEN,
    )
    return int(plan_cost(plan, AnalyticCosts(shape))["params_total"])


def logits(model: torch.nn.Module, ids: Tensor) -> Tensor:
    """Full logits without a cache."""
    with torch.inference_mode():
        return model(ids, use_cache=False).logits


@pytest.fixture(scope="session")
def ids() -> Tensor:
    """Two sequences of 12 tokens."""
    return torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def tiny() -> SimpleNamespace:
    """The helpers of this file; tests cannot import a conftest."""
    return SimpleNamespace(
        dense=dense, weights=weights_of, zeroed=zeroed, parameters=parameters_of, logits=logits, rope=ROPE
    )


PLANS = {
    "full": [(2, 48)] * 4,
    "equal": [(1, 20)] * 4,
    "mixed": [(2, 48), (1, 20), (2, 3), (1, 48)],
    "no_attention_in_block_0": [(0, 48), (2, 20), (1, 0), (2, 48)],
    "block_0_gone": [(0, 0), (2, 20), (1, 48), (2, 0)],
    "no_ffn": [(2, 0), (1, 0), (2, 0), (1, 0)],
    "no_attention": [(0, 48), (0, 20), (0, 3), (0, 0)],
    "nothing_left": [(0, 0)] * 4,
}


@pytest.fixture(params=PLANS, scope="session")
def plan(request: pytest.FixtureRequest) -> Plan:
    """Plans of every kind."""
    return Plan.of(PLANS[request.param])
