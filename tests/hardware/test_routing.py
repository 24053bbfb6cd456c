"""How unevenly experts are hit: counted on real routers, told in one number that predicts the counts."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from autoprune.hardware.routing import fitted_skew, hit_experts, routing_skew
from autoprune.hardware.terms import hits
from autoprune.hardware.workload import Workload

WORK = Workload(prefill_tokens=12, context=4, decode_steps=2, rounds=5)


@pytest.fixture
def model() -> Qwen3MoeForCausalLM:
    """Two layers of eight experts, two a token; the first layer's router always chooses the same."""
    torch.manual_seed(0)
    config = Qwen3MoeConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        moe_intermediate_size=8,
        num_experts=8,
        num_experts_per_tok=2,
    )
    made = Qwen3MoeForCausalLM(config)
    torch.nn.init.zeros_(made.model.layers[0].mlp.gate.weight)
    torch.nn.init.normal_(made.model.layers[1].mlp.gate.weight)
    return made


def test_hit_experts_are_counted_at_every_router(model: Qwen3MoeForCausalLM) -> None:
    (first, second) = hit_experts(model, WORK)
    assert first == (8, 2, 2)
    assert second[:2] == (8, 2) and 4 < second[2] <= 8
    assert not any(m._forward_hooks for m in model.modules())


def test_the_skew_explains_the_counts(model: Qwen3MoeForCausalLM) -> None:
    for skew in (0.5, 1.0, 1.5):
        counts = [(e, k, round(hits(e, k, 256, skew))) for e in (4, 8, 12, 16) for k in (1, 2)]
        assert fitted_skew(counts, 256) == pytest.approx(skew, abs=0.15)
    assert fitted_skew([(8, 2, 8), (4, 4, 4)], 256) == 0.0 and fitted_skew([], 256) == 0.0
    assert routing_skew([model], WORK) > 0.3
