"""The assembled model computes what the plan says, holds nothing else, and leaves the dense model alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from autoprune.errors import ExportError, UnsupportedModelError
from autoprune.export.assemble import assemble, build, mixed_config, plain_config
from autoprune.export.modeling.modeling_autoprune_llama import AutopruneLlamaForCausalLM
from autoprune.models import adapter_for
from autoprune.space import Plan

FAMILIES = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "attention_bias": {"attention_bias": True, "hidden_act": "gelu"},
}
FULL = Plan.of([(2, 48)] * 4)
MIXED = Plan.of([(0, 48), (2, 20), (1, 0), (2, 48)])


@pytest.fixture(params=FAMILIES, scope="module")
def model(request: pytest.FixtureRequest, tiny: SimpleNamespace) -> LlamaForCausalLM:
    return tiny.dense(rope_parameters=tiny.rope, rms_norm_eps=1e-3, **FAMILIES[request.param])


def test_equals_the_dense_model_with_lost_units_zeroed(
    model: LlamaForCausalLM, plan: Plan, tiny: SimpleNamespace, ids: Tensor
) -> None:
    small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
    assert not small.training
    torch.testing.assert_close(
        tiny.logits(small, ids), tiny.logits(tiny.zeroed(model, plan), ids), atol=1e-5, rtol=1e-5
    )
    assert plan == FULL or (tiny.logits(small, ids) - tiny.logits(model, ids)).abs().max() > 1e-2


def test_holds_only_what_was_kept(model: LlamaForCausalLM, plan: Plan, tiny: SimpleNamespace) -> None:
    small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
    assert sum(p.numel() for p in small.parameters()) == tiny.parameters(model, plan)
    for layer, (groups, width) in zip(small.model.layers, plan.widths(), strict=True):
        assert bool(list(layer.parameters())) == bool(groups or width)


def test_both_classes_reproduce_the_dense_model(
    model: LlamaForCausalLM, tiny: SimpleNamespace, ids: Tensor
) -> None:
    plain = plain_config(adapter_for(model), FULL)
    assert plain is not None
    for config, family in (
        (plain, LlamaForCausalLM),
        (mixed_config(adapter_for(model), FULL), AutopruneLlamaForCausalLM),
    ):
        small = build(adapter_for(model), config, FULL, tiny.weights(model), torch.float32)
        assert type(small) is family
        torch.testing.assert_close(tiny.logits(small, ids), tiny.logits(model, ids), atol=1e-6, rtol=1e-6)


def test_plain_class_only_for_equal_blocks_the_stock_config_accepts(
    plan: Plan, tiny: SimpleNamespace
) -> None:
    model = tiny.dense()
    small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
    equal = len(set(plan.widths())) == 1 and 0 not in plan.widths()[0]
    assert (type(small) is LlamaForCausalLM) == equal
    assert small.config.model_type == ("llama" if equal else "autoprune_llama")


def test_equal_blocks_the_stock_config_refuses() -> None:
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=8,
    )
    model = LlamaForCausalLM(config).eval()
    refused = Plan.of([(3, 8)] * 2)  # six heads on a hidden size of 32
    assert plain_config(adapter_for(model), refused) is None
    mixed = mixed_config(adapter_for(model), refused)
    assert mixed.num_attention_heads == 6  # common to all blocks, so it can be read
    assert [sizes.num_key_value_heads for sizes in mixed.per_layer_config] == [3, 3]


def test_shares_no_memory_and_changes_nothing(tiny: SimpleNamespace, ids: Tensor) -> None:
    model = tiny.dense(tie_word_embeddings=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    config = model.config.to_json_string()
    for plan in (FULL, MIXED):
        small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
        with torch.no_grad():
            for parameter in small.parameters():
                assert parameter.is_contiguous() and parameter.requires_grad
                parameter.fill_(7.0)
    assert model.config.to_json_string() == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_tied_embeddings_stay_one_parameter(tiny: SimpleNamespace) -> None:
    for tied in (True, False):
        model = tiny.dense(tie_word_embeddings=tied)
        for plan in (FULL, MIXED):
            small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
            assert (small.lm_head.weight is small.model.embed_tokens.weight) == tied


def test_carries_settings_over(tiny: SimpleNamespace) -> None:
    settings = {"rms_norm_eps": 3e-4, "hidden_act": "gelu", "pad_token_id": 3, "eos_token_id": [1, 2]}
    model = tiny.dense(rope_parameters=tiny.rope, **settings)
    model.set_attn_implementation("eager")
    model.generation_config.max_new_tokens = 5
    for plan in (FULL, MIXED):
        small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
        for name in (*settings, "rope_parameters", "max_position_embeddings", "head_dim"):
            assert getattr(small.config, name) == getattr(model.config, name), name
        assert small.config._attn_implementation == "eager"
        assert small.generation_config.max_new_tokens == 5
        assert small.generation_config.eos_token_id == [1, 2]


def test_rotary_frequencies_keep_full_precision_in_bfloat16(tiny: SimpleNamespace) -> None:
    model = tiny.dense(rope_parameters=tiny.rope)
    for plan in (FULL, MIXED):
        small = assemble(adapter_for(model), plan, tiny.weights(model), torch.bfloat16)
        assert {p.dtype for p in small.parameters()} == {torch.bfloat16} and small.dtype == torch.bfloat16
        assert torch.equal(small.model.rotary_emb.inv_freq, model.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda found: found.pop("norm"), "block 0's ffn was given no norm"),
        (lambda found: found.update(up=found["up"][1:]), r"up is \[47, 32\], the plan needs \[48, 32\]"),
        (lambda found: found.update(down_bias=found["norm"]), r"given \['down_bias'\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(tiny: SimpleNamespace, change: object, message: str) -> None:
    model = tiny.dense()

    def weights(block: int, kept: object) -> dict[str, Tensor]:
        found = dict(tiny.weights(model)(block, kept))
        if "up" in found and block == 0:
            change(found)
        return found

    with pytest.raises(ExportError, match=message):
        assemble(adapter_for(model), MIXED, weights, torch.float32)


def test_plans_of_another_model_are_refused(tiny: SimpleNamespace) -> None:
    model = tiny.dense()
    with pytest.raises(ExportError, match="the plan has 3 blocks, the model 4"):
        assemble(adapter_for(model), Plan.of([(2, 48)] * 3), tiny.weights(model), torch.float32)
    with pytest.raises(ExportError, match=r"keeps 3 KV groups .*allowed: 0..2 and 0..48"):
        assemble(adapter_for(model), Plan.of([(3, 48)] * 4), tiny.weights(model), torch.float32)
    small = assemble(adapter_for(model), MIXED, tiny.weights(model), torch.float32)
    with pytest.raises(UnsupportedModelError, match="autoprune_llama"):
        assemble(adapter_for(small), MIXED, tiny.weights(model), torch.float32)
