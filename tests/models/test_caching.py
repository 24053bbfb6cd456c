"""Policies of the KV cache as masks: what they keep, and that decoding with a cache that throws away says the same."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.forward import logits_of
from autoprune.kv_policy import Accumulated, KeyChannels, KVPolicy, Streaming, Window, held_values, policy_of
from autoprune.models import adapter_for
from autoprune.models.caching import ATTENTION, attend
from autoprune.models.caching.steps import Steps
from autoprune.models.load import load_model
from autoprune.run.stream import dense_logits
from autoprune.shape import AnalyticCosts, decode_flops
from autoprune.space import SublayerPlan
from autoprune.supernet import Supernet
from tests.caching import POLICIES, PROMPT, TOKENS, cut_plan, decoded, masked
from tests.families import CASES, VOCABULARY, model_of

IDS = torch.randint(VOCABULARY, (2, TOKENS), generator=torch.Generator().manual_seed(5))


def settings_for(policy: str, adapter: Any) -> dict[str, int | float]:
    """As they are, and with every group streaming where there is only one."""
    found = dict(POLICIES[policy])
    if policy == "streaming" and adapter.shape.kv_groups == 1:
        found["kv_full_groups"] = 0
    return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_scoring_is_decoding_with_the_cache_that_throws_away(name: str, variant: str, policy: str) -> None:
    adapter: Any = adapter_for(model_of(name, variant))
    plan = cut_plan(adapter.shape, settings_for(policy, adapter))
    model = adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), torch.float32)
    expected = masked(adapter, plan, IDS)
    dense = dense_logits(adapter)(IDS)
    assert torch.allclose(expected[:, :PROMPT], dense[:, :PROMPT], atol=1e-5)
    windowed = None not in adapter.shape.windows and policy in ("window", "accumulated")
    assert windowed or (expected - dense)[:, PROMPT + 1 :].abs().amax() > 1e-2  # it does something
    assert (decoded(model, IDS) - expected).abs().max() <= 1e-4
    with torch.inference_mode():
        assert (logits_of(model, IDS, PROMPT) - expected).abs().max() <= 1e-4
        assert torch.allclose(model(IDS, use_cache=False).logits, dense, atol=1e-5)


@pytest.fixture(scope="module")
def adapter() -> Any:
    return adapter_for(model_of("llama", "tied"))


def test_blocks_may_differ_and_prefixes_stay_shared(adapter: Any) -> None:
    mixed = [{**POLICIES["window"], "kv_budget": b} for b in (5, 24, 9)]
    plans = [
        cut_plan(adapter.shape, *mixed),
        cut_plan(adapter.shape, *mixed[:2]),
        cut_plan(adapter.shape, *mixed),
    ]
    plans += [cut_plan(adapter.shape, mixed[0], mixed[1], {**POLICIES["window"], "kv_budget": 6})]

    class Dense:
        def weights(self, block: int, plan: SublayerPlan) -> Any:
            return adapter.weights(block, plan.kind)

    net, found = Supernet(adapter, Dense()), dict[int, Tensor]()
    adapter.prompt_len = PROMPT
    try:
        net.run(plans, IDS, lambda at, logits: found.__setitem__(at, logits))
    finally:
        adapter.prompt_len = None
    for at, plan in enumerate(plans):
        assert torch.equal(found[at], masked(adapter, plan, IDS))
    assert net.telemetry.runs == 6 + 2 + 2 and net.telemetry.naive_runs == 24


def test_what_keeps_everything_and_what_is_all_prompt_is_bitwise_dense(adapter: Any) -> None:
    dense = dense_logits(adapter)(IDS)
    full = {"kv_budget": 24, "kv_full_groups": 2, "kv_channels": 8}
    for settings in POLICIES.values():
        whole = {k: full.get(k, v) for k, v in settings.items()}
        assert torch.equal(masked(adapter, cut_plan(adapter.shape, whole), IDS), dense)
        for prompt in (None, TOKENS):
            assert torch.equal(masked(adapter, cut_plan(adapter.shape, settings), IDS, prompt), dense)


def shares(policy: KVPolicy, groups: int = 2, per_group: int = 2, seed: int = 0) -> tuple[Tensor, Steps]:
    """Attention of random queries and keys under a policy, [1, groups, queries a group, steps, T]."""
    generator = torch.Generator().manual_seed(seed)
    query = torch.randn(1, groups, per_group, TOKENS, 8, generator=generator)
    key = torch.randn(1, groups, TOKENS, 8, generator=generator)
    steps = Steps(query, key, PROMPT, 0.5, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())
    return ATTENTION[type(policy)](policy, steps), steps


def test_a_window_keeps_the_first_tokens_and_the_newest() -> None:
    found, _ = shares(Window(6, 2))
    for step, at in enumerate(range(PROMPT, TOKENS)):
        seen = {0, 1, *range(at - 4, at + 1)}
        assert set(found[0, 0, 0, step].nonzero()[:, 0].tolist()) == seen


@pytest.mark.parametrize("policy", [Window(6, 2), Accumulated(6, 2, 1.0), Accumulated(12, 2, 0.5)])
def test_a_step_sees_as_many_tokens_as_the_budget_and_itself(policy: Any) -> None:
    found, _ = shares(policy)
    counts = (found > 0).sum(-1)
    places = torch.arange(PROMPT, TOKENS)
    assert torch.equal(counts[0, 1, 1], torch.minimum(places, torch.tensor(policy.budget)) + 1)
    assert torch.allclose(found.sum(-1), torch.ones(()))


def test_the_same_groups_stream_in_all_steps() -> None:
    found, _ = shares(Streaming(1, 2, 3))
    counts = (found > 0).sum(-1)[0, :, 0]
    assert counts[0].tolist() == list(range(PROMPT + 1, TOKENS + 1)) and set(counts[1].tolist()) == {6}


def greedy_by_hand(policy: Accumulated, steps: Steps, group: int) -> list[set[int]]:
    """Token by token with a dictionary: who is seen at each step."""
    kept, paid, seen = list[int](), dict[int, float](), []
    for at in range(steps.tokens):
        kept.append(at)
        query, key = steps.query[0, group, :, at], steps.key[0, group, kept]
        share = (query @ key.T * steps.scale).softmax(-1).sum(0)
        paid = {j: policy.forgetting * v for j, v in paid.items()} | {at: 0.0}
        for j, value in zip(kept, share.tolist(), strict=True):
            paid[j] += value
        if at >= steps.prompt:
            seen.append(set(kept))
        if at >= steps.prompt - 1:
            while len(kept) > policy.budget:
                kept.remove(min(kept[: -policy.recent], key=paid.__getitem__))
    return seen


@pytest.mark.parametrize("forgetting", [1.0, 0.8, 0.0])
def test_least_accumulated_attention_goes_first(forgetting: float) -> None:
    policy = Accumulated(6, 2, forgetting)
    found, steps = shares(policy)
    for group in range(2):
        expected = greedy_by_hand(policy, steps, group)
        assert [set(row.nonzero()[:, 0].tolist()) for row in found[0, group, 0]] == expected


@pytest.mark.parametrize(("forgetting", "stays"), [(1.0, 1), (0.5, 5)])
def test_forgetting_prefers_what_had_attention_lately(forgetting: float, stays: int) -> None:
    """Six queries of the prompt want token 1, then three want token 5; one of them stays beside the newest two."""
    query, key = torch.zeros(1, 1, 1, TOKENS, 2), torch.zeros(1, 1, TOKENS, 2)
    query[..., :7, 0] = query[..., 7:PROMPT, 1] = 9.0
    key[..., 1, 0] = key[..., 5, 1] = 9.0
    steps = Steps(query, key, PROMPT, 1.0, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())
    found = ATTENTION[Accumulated](Accumulated(3, 2, forgetting), steps)
    assert set(found[0, 0, 0, 0].nonzero()[:, 0].tolist()) == {stays, 8, 9, 10}


def test_channels_are_those_that_the_prompt_s_last_queries_want() -> None:
    generator = torch.Generator().manual_seed(3)
    scale = torch.tensor([3.0, 3.0, 1.0, 1.0, 0.3, 0.3, 0.1, 0.1])
    query = torch.randn(1, 1, 1, TOKENS, 8, generator=generator) * scale
    key = torch.randn(1, 1, TOKENS, 8, generator=generator)
    misled = torch.cat((query[..., :PROMPT, :].flip(-1), query[..., PROMPT:, :]), -2)
    errors = {}
    for name, asked in {"right": query, "misled": misled}.items():
        steps = Steps(asked, key, PROMPT, 0.3, torch.ones(TOKENS, TOKENS, dtype=torch.bool).tril())
        exact = steps.softmax(steps.scores(PROMPT), steps.ago >= 0)
        errors[name] = float((ATTENTION[KeyChannels](KeyChannels(3, 6), steps) - exact).abs().mean())
        assert torch.equal(ATTENTION[KeyChannels](KeyChannels(3, TOKENS), steps), exact)  # all are recent
    assert errors["right"] < 0.5 * errors["misled"]


def test_grouped_heads_and_the_dense_window_are_respected() -> None:
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(2, 4, TOKENS, 8, generator=generator)
    key, value = torch.randn(2, 2, 2, TOKENS, 8, generator=generator)
    ago = torch.arange(TOKENS)[:, None] - torch.arange(TOKENS)
    near = (ago >= 0) & (ago < 5)
    policies: list[KVPolicy] = [
        Window(23, 0),
        Accumulated(23, 1, 1.0),
        Streaming(2, 0, 23),
        KeyChannels(8, 1),
    ]
    for policy in policies:
        for mask in (None, near):
            found = attend(policy, query, key, value, PROMPT, 0.4, mask)
            dense = torch.nn.functional.scaled_dot_product_attention(
                query,
                key,
                value,
                attn_mask=near if mask is not None else ago >= 0,
                scale=0.4,
                enable_gqa=True,
            )
            assert torch.allclose(found, dense, atol=1e-5), policy


def test_bytes_and_flops_follow_what_is_kept(adapter: Any) -> None:
    shape, tokens = adapter.shape, 100
    size, whole = shape.bytes_per_value, 2 * shape.kv_groups * shape.head_dim
    per_token = {
        "window": whole * 7,
        "accumulated": whole * 7,
        "streaming": 2 * shape.head_dim * (100 + 6),
        "key_channels": shape.kv_groups * (3 * 16 + 97 * 11),
    }
    costs = AnalyticCosts(shape, tokens)
    for policy, settings in POLICIES.items():
        plan = cut_plan(shape, settings)
        attention = plan.at(0, "attention")
        assert held_values(attention, shape.head_dim, tokens) == per_token[policy]
        assert costs.sublayer(0, attention)["kv_bytes"] == per_token[policy] * size
        assert (
            costs.sublayer(0, attention)["params"]
            == costs.sublayer(0, SublayerPlan.of("attention", kv_groups=2))["params"]
        )
        dense = cut_plan(shape, {})
        saved = decode_flops(shape, dense, tokens) - decode_flops(shape, plan, tokens)
        assert saved == 3 * 2 * shape.heads_per_group * (whole * tokens - per_token[policy])
        assert decode_flops(shape, dense, 3) >= decode_flops(shape, plan, 3)
    narrow = dataclasses.replace(shape, windows=(5,) * 3)
    window = cut_plan(shape, POLICIES["window"]).at(0, "attention")
    assert AnalyticCosts(narrow, tokens).sublayer(0, window)["kv_bytes"] == whole * 4 * size


def test_streaming_keeps_everything_when_as_many_groups_are_left() -> None:
    found = SublayerPlan.of("attention", kv_groups=1, **POLICIES["streaming"])
    assert policy_of(found) is None
    assert policy_of(SublayerPlan.of("attention", kv_groups=2, **POLICIES["streaming"])) == Streaming(1, 2, 4)


@pytest.mark.real
@pytest.mark.parametrize("policy", POLICIES)
def test_scoring_is_decoding_on_a_trained_model(real_data: Path, policy: str) -> None:
    loaded = load_model(str(real_data / "wiki-llama"))
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:2000]
    adapter: Any = adapter_for(loaded.model)
    settings = dict(POLICIES[policy]) | {"kv_full": 99}
    settings |= {k: 24 for k in ("kv_budget",) if k in settings}
    plan = cut_plan(adapter.shape, settings)
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:192]).reshape(2, 96)
    model = adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), torch.float32)
    expected = masked(adapter, plan, ids, 48)
    assert (decoded(model, ids, 48) - expected).abs().max() <= 1e-4
    assert (expected - dense_logits(adapter)(ids)).abs().max() > 1e-2
