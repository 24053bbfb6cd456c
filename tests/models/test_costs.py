"""Analytic costs are those of the models that are built: parameters, bytes, FLOPs, cache."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import DynamicCache

from autoprune.export.assemble import assemble
from autoprune.models.llama import LlamaAdapter
from autoprune.shape import AnalyticCosts
from autoprune.space import Plan, plan_cost
from tests import tiny

TOKENS = 24
PLANS = {
    "dense": [(tiny.GROUPS, tiny.FFN)] * 2,
    "equal": [(1, 20)] * 2,
    "mixed": [(2, 4), (1, 48)],
    "no_attention": [(2, 20), (0, 8)],
    "no_ffn": [(1, 0), (2, 12)],
    "nothing": [(0, 0)] * 2,
}


def built(model: Any, plan: Plan) -> Any:
    """The smaller model of a plan's first units."""
    adapter = LlamaAdapter(model)

    def weights(block: int, sublayer: Any) -> Any:
        count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
        return adapter.units(sublayer.kind).prefix(adapter.weights(block, sublayer.kind), count)

    return assemble(adapter, plan, weights, torch.float32)


def costs(model: Any, plan: Plan) -> dict[str, float]:
    return plan_cost(plan, AnalyticCosts(LlamaAdapter(model).shape, TOKENS))


def counted_flops(model: Any) -> int:
    """FLOPs of one prefill of one sequence."""
    counter = FlopCounterMode(display=False)
    with torch.inference_mode(), counter:
        model(input_ids=tiny.token_ids((1, TOKENS)), use_cache=False)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("biases", [False, True])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", PLANS)
def test_parameters_are_those_of_the_model_that_is_built(name: str, tied: bool, biases: bool) -> None:
    settings = {"tie_word_embeddings": tied, "attention_bias": biases, "mlp_bias": biases}
    model = tiny.llama(blocks=2, **settings)
    small = built(model, Plan.of(PLANS[name]))
    cost = costs(model, Plan.of(PLANS[name]))
    assert cost["params_total"] == sum(p.numel() for p in small.parameters())
    assert cost["params"] == sum(p.numel() for p in small.model.layers.parameters())
    assert cost["bytes"] == 4 * cost["params_total"]


@pytest.mark.parametrize("name", PLANS)
def test_flops_are_those_that_are_counted(name: str) -> None:
    model = tiny.llama(blocks=2, attn_implementation="eager")
    plan = Plan.of(PLANS[name])
    assert costs(model, plan)["flops"] == counted_flops(built(model, plan))


def test_flops_of_the_stock_model() -> None:
    model = tiny.llama(blocks=2, attn_implementation="eager", attention_bias=True)
    assert costs(model, Plan.of(PLANS["dense"]))["flops"] == counted_flops(model)


@pytest.mark.parametrize("name", ["dense", "mixed", "equal"])
def test_kv_bytes_are_those_of_the_cache(name: str) -> None:
    model, plan = tiny.llama(blocks=2), Plan.of(PLANS[name])
    small = built(model, plan)
    cache = DynamicCache(config=small.config)
    with torch.inference_mode():
        small(input_ids=tiny.token_ids((1, TOKENS)), past_key_values=cache, use_cache=True)
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    assert costs(model, plan)["kv_bytes"] == held
