"""Decoding with a cache agrees with full passes, wherever attention was removed."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel

from autoprune.export.assemble import assemble, build, mixed_config
from autoprune.export.modeling.modeling_autoprune_llama import AutopruneLlamaConfig
from autoprune.models import adapter_for
from autoprune.space import Plan, SublayerPlan
from tests.tiny import llama

MIXED = Plan.of([(0, 48), (2, 20), (1, 0), (2, 48)])


@pytest.fixture(scope="module")
def small(plan: Plan, tiny: SimpleNamespace) -> PreTrainedModel:
    """Always our own class."""
    model = tiny.dense()
    return build(
        adapter_for(model), mixed_config(adapter_for(model), plan), plan, tiny.weights(model), torch.float32
    )


def decode(model: PreTrainedModel, ids: Tensor, cache: Cache | None, start: int) -> tuple[Tensor, Cache]:
    """Prefill, then one token at a time; logits of the last prefilled position and all later ones."""
    with torch.inference_mode():
        output = model(ids[:, :start], past_key_values=cache, use_cache=True)
        found = [output.logits[:, -1:]]
        for i in range(start, ids.shape[1]):
            output = model(ids[:, i : i + 1], past_key_values=output.past_key_values)
            found.append(output.logits)
    return torch.cat(found, 1), output.past_key_values


@pytest.mark.parametrize("made", ["by the model", "with the config", "without a config"])
def test_cached_logits_equal_full_logits(
    small: PreTrainedModel, ids: Tensor, tiny: SimpleNamespace, made: str
) -> None:
    caches = {"with the config": DynamicCache(config=small.config), "without a config": DynamicCache()}
    found, cache = decode(small, ids, caches.get(made), 7)
    torch.testing.assert_close(found, tiny.logits(small, ids)[:, 6:], atol=1e-5, rtol=1e-5)
    assert cache.get_seq_length() == ids.shape[1]


def test_a_cropped_cache_continues_rightly(
    small: PreTrainedModel, ids: Tensor, tiny: SimpleNamespace
) -> None:
    _, cache = decode(small, ids, None, 7)
    cache.crop(-4)
    assert cache.get_seq_length() == ids.shape[1] - 4
    other = torch.cat([ids[:, :-4], ids[:, -4:].flip(1)], 1)
    with torch.inference_mode():
        for i in range(ids.shape[1] - 4, ids.shape[1]):
            last = small(other[:, i : i + 1], past_key_values=cache).logits
    torch.testing.assert_close(last[:, 0], tiny.logits(small, other)[:, -1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cached", [True, False])
def test_generate_is_greedy_decoding(
    small: PreTrainedModel, ids: Tensor, tiny: SimpleNamespace, cached: bool
) -> None:
    want = ids
    for _ in range(5):
        want = torch.cat([want, tiny.logits(small, want)[:, -1:].argmax(-1)], 1)
    settings = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "use_cache": cached}
    assert torch.equal(small.generate(ids, **settings), want)
    assert small.generate(ids, num_beams=2, **settings).shape == want.shape


def test_left_padding_is_ignored(small: PreTrainedModel, ids: Tensor, tiny: SimpleNamespace) -> None:
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.inference_mode():
        positions = (mask.cumsum(1) - 1).clamp(0)
        padded = small(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(padded[0, 3:], tiny.logits(small, ids[:1, 3:])[0], atol=1e-5, rtol=1e-5)


def test_switching_to_eager_reaches_every_block(small: PreTrainedModel, ids: Tensor) -> None:
    with torch.inference_mode():
        want = small(ids).logits
        small.set_attn_implementation("eager")
        output = small(ids, output_attentions=True, output_hidden_states=True)
        small.set_attn_implementation("sdpa")
    attending = [layer for layer in small.model.layers if layer.self_attn is not None]
    assert len(output.attentions) == len(attending) and all(a is not None for a in output.attentions)
    assert len(output.hidden_states) == len(small.model.layers) + 1
    torch.testing.assert_close(output.logits, want, atol=1e-5, rtol=1e-5)


def test_a_block_without_sublayers_is_not_even_called(ids: Tensor, tiny: SimpleNamespace) -> None:
    model = tiny.dense()
    plan = Plan.of([(2, 48), (0, 0), (1, 20), (0, 20)])
    small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
    called = []
    for i, layer in enumerate(small.model.layers):
        layer.register_forward_hook(lambda *_, i=i: called.append(i))
    tiny.logits(small, ids)
    assert called == [0, 2, 3]


def test_gradients_reach_all_that_is_left(ids: Tensor, tiny: SimpleNamespace) -> None:
    model = tiny.dense()
    small = assemble(adapter_for(model), MIXED, tiny.weights(model), torch.float32).train()
    small.activation_checkpointing_enable()
    small(ids, labels=ids).loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in small.parameters())


def test_config_marks_blocks_without_attention_for_the_cache(tiny: SimpleNamespace) -> None:
    config = mixed_config(adapter_for(tiny.dense()), MIXED)
    assert config.layer_types == ["moe", "full_attention", "full_attention", "full_attention"]
    again = AutopruneLlamaConfig.from_dict(config.to_dict())
    assert again.to_dict() == config.to_dict()
    assert [again.skips(i, "mlp") for i in range(4)] == [False, False, True, False]


def test_blocks_without_attention_leave_global_heads_and_groups_that_go_together() -> None:
    sizes = [(0, 2), (1, 1), (1, 1), (2, 1), (2, 2)]  # of every block: KV groups, query heads of each
    ffn = SublayerPlan.of("ffn", width=48)
    attention = [SublayerPlan.of("attention", kv_groups=g, group_heads=h) for g, h in sizes]
    plan = Plan(tuple(s for own in attention for s in (own, ffn)))
    config = mixed_config(adapter_for(llama(blocks=len(sizes))), plan)
    first = config.per_layer_config[0]
    assert (first.num_attention_heads, first.num_key_value_heads) == (1, 1)


def test_config_refuses_heads_that_do_not_share_out() -> None:
    with pytest.raises(ValueError, match=r"block 1: num_attention_heads \(3\) is not a multiple"):
        AutopruneLlamaConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            per_layer_config={1: {"num_attention_heads": 3}},
        )
