"""Prompt tokens that blocks drop: scoring is decoding with the model that drops them, and they come back by rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.forward import logits_of
from autoprune.models import adapter_for
from autoprune.models.base import State
from autoprune.models.load import load_model
from autoprune.models.prompt_tokens import handed_on, sight
from autoprune.run.stream import dense_logits
from autoprune.shape import AnalyticCosts, decode_flops
from autoprune.space import PREFILL, Plan, SublayerPlan, plan_cost
from autoprune.space import PROMPT as FOR_GOOD
from autoprune.supernet import Supernet
from tests.caching import PROMPT, TOKENS, decoded, masked
from tests.families import CASES, VOCABULARY, model_of

IDS = torch.randint(VOCABULARY, (3, TOKENS), generator=torch.Generator().manual_seed(5))
KEEPS = (70, 50, 40)
RULES = (PREFILL, FOR_GOOD)


def plan_of(shape: Any, keeps: tuple[int, ...], groups: int | None = None, rule: str = PREFILL) -> Plan:
    """A plan with these shares; zero takes the attention out."""
    sublayers = []
    for keep in keeps:
        kept = (shape.kv_groups if groups is None else groups) if keep else 0
        sublayers.append(SublayerPlan.of("attention", **{"kv_groups": kept, f"keep_{rule}": keep}))
        sublayers.append(SublayerPlan.of("ffn", width=shape.ffn))
    return Plan(tuple(sublayers))


def installed(adapter: Any, plan: Plan) -> Any:
    return adapter.install(plan, lambda block, s: adapter.weights(block, s.kind), torch.float32)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(("name", "variant"), CASES)
def test_scoring_is_decoding_with_the_model_that_drops(name: str, variant: str, rule: str) -> None:
    adapter: Any = adapter_for(model_of(name, variant))
    plan = plan_of(adapter.shape, KEEPS, rule=rule)
    model = installed(adapter, plan)
    expected, dense = masked(adapter, plan, IDS), dense_logits(adapter)(IDS)
    assert (expected - dense)[:, PROMPT:].abs().amax() > 1e-2  # it does something
    found = decoded(model, IDS)
    scored = slice(PROMPT - 1, None)
    assert (found - expected)[:, scored].abs().max() <= 1e-4
    with torch.inference_mode():
        assert (logits_of(model, IDS, PROMPT) - expected)[:, scored].abs().max() <= 1e-4
        assert torch.allclose(model(IDS, use_cache=False).logits, dense, atol=1e-5)


def test_a_token_out_of_sight_stays_out_however_little_the_others_are_looked_at() -> None:
    alive = torch.ones(1, 1, 5, dtype=torch.bool)
    alive[..., 0] = False
    key = torch.zeros(1, 1, 5, 2)
    key[0, 0, 3] = 1e4  # all attention is there: the rest underflows to zero, as what is out of sight does
    seen = sight(alive, torch.ones(5, 5, dtype=torch.bool).tril())
    left = handed_on(alive, torch.ones(1, 1, 5, 2), key, seen, 1.0, 75, for_good=False)
    assert left.sum() == 3 and not (left & ~alive).any()


@pytest.mark.parametrize("rule", RULES)
def test_blocks_without_attention_and_next_to_nothing_in_sight(rule: str) -> None:
    adapter: Any = adapter_for(model_of("llama", "tied"))
    for keeps in ((0, 40, 30), (40, 0, 100), (1, 1, 1)):
        plan = plan_of(adapter.shape, keeps, rule=rule)
        expected = run(adapter, [plan])[0][0]
        found = decoded(installed(adapter, plan), IDS)
        assert (found - expected)[:, PROMPT - 1 :].abs().max() <= 1e-4, keeps


class Dense:
    """Weights as they are."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter

    def weights(self, block: int, plan: SublayerPlan) -> Any:
        """Whole."""
        return self.adapter.weights(block, plan.kind)


def run(adapter: Any, plans: list[Plan]) -> tuple[dict[int, Tensor], int]:
    """Logits of plans on one supernet, and how many sublayers it ran."""
    net, found = Supernet(adapter, Dense(adapter)), dict[int, Tensor]()
    adapter.prompt_len = PROMPT
    try:
        net.run(plans, IDS, lambda at, logits: found.__setitem__(at, logits))
    finally:
        adapter.prompt_len = None
    return found, net.telemetry.runs


@pytest.fixture(scope="module")
def adapter() -> Any:
    return adapter_for(model_of("llama", "tied"))


def test_what_keeps_everything_and_what_is_all_prompt_is_bitwise_dense(adapter: Any) -> None:
    dense = dense_logits(adapter)(IDS)
    assert torch.equal(masked(adapter, plan_of(adapter.shape, (100, 100, 100)), IDS), dense)
    for prompt in (None, TOKENS):
        assert torch.equal(masked(adapter, plan_of(adapter.shape, KEEPS), IDS, prompt), dense)


def test_the_last_block_drops_for_nothing(adapter: Any) -> None:
    """Nobody looks at what its attention hands on."""
    plan, dense = plan_of(adapter.shape, (100, 100, 1)), dense_logits(adapter)(IDS)
    assert torch.equal(masked(adapter, plan, IDS), dense)
    assert (decoded(installed(adapter, plan), IDS) - dense)[:, PROMPT - 1 :].abs().max() <= 1e-4


def states(adapter: Any, plan: Plan) -> list[State]:
    """After every sublayer."""
    adapter.prompt_len = PROMPT
    try:
        found = [adapter.embed(IDS)]
    finally:
        adapter.prompt_len = None
    for at, sublayer in enumerate(plan.sublayers):
        weights = adapter.weights(at // 2, sublayer.kind)
        found.append(adapter.run_sublayer(at // 2, sublayer.kind, found[-1], weights, sublayer))
    return found[1:]


def test_a_share_changes_what_follows_and_nothing_before(adapter: Any) -> None:
    before, after = (states(adapter, plan_of(adapter.shape, (70, keep, 40))) for keep in (60, 30))
    for at, (old, new) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(old.hidden, new.hidden) == (at < 4)
        assert torch.equal(old.positions, new.positions) and old.kept is new.kept is None
        if old.alive is not None and new.alive is not None:
            assert torch.equal(old.alive, new.alive) == (at < 2)


def test_every_step_has_its_share_in_sight_and_the_last_prompt_token(adapter: Any) -> None:
    alive = [state.alive for state in states(adapter, plan_of(adapter.shape, KEEPS))]
    for found, count in zip(alive[::2], (7, 4, 2), strict=True):
        assert found is not None and set(found.sum(-1).flatten().tolist()) == {count}
        assert bool(found[..., -1].all())
    for inner, outer in zip(alive[2:], alive, strict=False):
        assert inner is not None and outer is not None and bool((inner <= outer).all())


def test_dropped_tokens_come_back(adapter: Any) -> None:
    """Later steps have tokens in sight that the prompt's reading had dropped; without them scores are others."""
    plan = plan_of(adapter.shape, KEEPS)
    alive = states(adapter, plan)[-1].alive
    assert alive is not None and bool((alive[:, 1:] & ~alive[:, :1]).any())
    left_out = ~alive.any(1)
    assert bool(left_out.any())  # and some never do


def test_what_the_newest_token_looks_at_most_stays() -> None:
    query, key = torch.zeros(1, 2, 6, 4), torch.zeros(1, 1, 6, 4)
    key[0, 0, 1, 0] = key[0, 0, 2, 1] = 5.0
    query[0, :, 3, 0] = query[0, :, 4, 1] = query[0, :, 5, 0] = 5.0  # the prompt's last, and two steps
    alive = torch.ones(1, 3, 4, dtype=torch.bool)
    seen = torch.ones(1, 1, 6, 6, dtype=torch.bool).tril()
    found = handed_on(alive, query, key, seen, 1.0, 50, for_good=False)
    assert found[0].int().tolist() == [[0, 1, 0, 1], [0, 0, 1, 1], [0, 1, 0, 1]]
    nested = handed_on(found, query, key, seen, 1.0, 50, for_good=False)
    assert nested[0].int().tolist() == [[0, 0, 0, 1]] * 3
    once = handed_on(alive, query, key, seen, 1.0, 50, for_good=True)
    assert once[0].int().tolist() == [[0, 1, 0, 1]] * 3


def test_a_token_sees_what_its_first_step_has_in_sight() -> None:
    alive = torch.tensor([[[1, 0, 1, 1], [1, 1, 0, 1]]], dtype=torch.bool)
    found = sight(alive, torch.ones(5, 5, dtype=torch.bool).tril())[0, 0].int().tolist()
    assert found == [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 0, 1, 1, 0], [1, 1, 0, 1, 1]]


def test_plans_share_what_comes_before_the_drop(adapter: Any) -> None:
    plans = [plan_of(adapter.shape, keeps) for keeps in (KEEPS, (70, 50, 30), KEEPS, (70, 60, 40))]
    found, runs = run(adapter, plans)
    for at, plan in enumerate(plans):
        assert torch.equal(found[at], masked(adapter, plan, IDS))
    assert runs == 6 + 2 + 4


def read_by(model: Any, call: Any) -> list[int]:
    """Tokens that enter the FFN of every block in a call."""
    counts: list[int] = []
    hooks = [
        layer.mlp.register_forward_pre_hook(lambda _, args: counts.append(args[0].shape[1]))
        for layer in model.model.layers
    ]
    call()
    for hook in hooks:
        hook.remove()
    return counts


def test_a_block_computes_what_is_left_and_what_comes_back_once(adapter: Any) -> None:
    model = installed(adapter, plan_of(adapter.shape, KEEPS))
    alive = [state.alive for state in states(adapter, plan_of(adapter.shape, KEEPS))][::2]
    ids = IDS[:1]
    with torch.inference_mode():
        assert read_by(model, lambda: model(ids[:, :PROMPT], use_cache=True)) == [7, 4, 2]
        past = model(ids[:, :PROMPT], use_cache=True).past_key_values
        for step, at in enumerate(range(PROMPT, TOKENS), 1):
            token = ids[:, at : at + 1]
            counts = read_by(model, lambda t=token: model(t, past_key_values=past))
            for count, seen in zip(counts, alive, strict=True):
                assert seen is not None
                assert count == 1 + int((seen[0, step] & ~seen[0, :step].any(0)).sum()), step


def test_flops_are_those_of_the_tokens_that_are_left(adapter: Any) -> None:
    costs = AnalyticCosts(adapter.shape, PROMPT)
    plan, full = plan_of(adapter.shape, KEEPS), plan_of(adapter.shape, (100, 100, 100))
    ffn = AnalyticCosts(adapter.shape, 1).sublayer(0, plan.at(0, "ffn"))["flops"]
    total, tokens = costs.base["flops"], PROMPT
    for block, left in enumerate((7, 4, 2)):
        own = AnalyticCosts(adapter.shape, tokens).sublayer(block, plan.at(block, "attention"))["flops"]
        total += own + left * ffn
        tokens = left
    assert costs.plan(plan)["flops"] == total < plan_cost(full, costs)["flops"]
    assert plan_cost(plan, costs)["params"] == plan_cost(full, costs)["params"]


def test_what_goes_for_good_is_never_seen_again(adapter: Any) -> None:
    plan = plan_of(adapter.shape, KEEPS, rule=FOR_GOOD)
    alive = [state.alive for state in states(adapter, plan)][::2]
    for found, count in zip(alive, (7, 4, 2), strict=True):
        assert found is not None and set(found.sum(-1).flatten().tolist()) == {count}
        assert bool((found == found[:, :1]).all()) and bool(found[..., -1].all())
    returning = masked(adapter, plan_of(adapter.shape, KEEPS), IDS)
    assert (masked(adapter, plan, IDS) - returning)[:, PROMPT:].abs().amax() > 1e-2


def test_caches_hold_what_came_and_a_token_runs_alone(adapter: Any) -> None:
    """Every block keeps what its attention read; the bytes are those that the costs tell."""
    plan = plan_of(adapter.shape, KEEPS, rule=FOR_GOOD)
    model, ids = installed(adapter, plan), IDS[:1]
    with torch.inference_mode():
        assert read_by(model, lambda: model(ids[:, :PROMPT], use_cache=True)) == [7, 4, 2]
        past = model(ids[:, :PROMPT], use_cache=True).past_key_values
        assert [layer.keys.shape[2] for layer in past.layers] == [PROMPT, 7, 4]
        values = 2 * sum(layer.keys.numel() for layer in past.layers)
        costs = plan_cost(plan, AnalyticCosts(adapter.shape, PROMPT))
        assert costs["kv_bytes"] == adapter.shape.bytes_per_value * values
        for at in range(PROMPT, TOKENS):
            token = ids[:, at : at + 1]
            assert read_by(model, lambda t=token: model(t, past_key_values=past)) == [1, 1, 1]
        new = TOKENS - PROMPT
        assert [layer.keys.shape[2] for layer in past.layers] == [PROMPT + new, 7 + new, 4 + new]
        assert past.get_seq_length() == TOKENS
    whole = plan_of(adapter.shape, (100, 100, 100), rule=FOR_GOOD)
    saved = decode_flops(adapter.shape, whole, PROMPT) - decode_flops(adapter.shape, plan, PROMPT)
    heads = adapter.shape.heads * adapter.shape.head_dim
    assert saved == 4 * heads * (PROMPT - 7 + PROMPT - 4)


def test_steps_can_be_taken_back(adapter: Any) -> None:
    model, ids = installed(adapter, plan_of(adapter.shape, KEEPS, rule=FOR_GOOD)), IDS[:2]
    with torch.inference_mode():
        past = model(ids[:, :PROMPT], use_cache=True).past_key_values
        past.activate_past_recording()
        first = model(ids[:, PROMPT : PROMPT + 3], past_key_values=past).logits
        past.crop(-2)
        again = model(ids[:, PROMPT + 1 : PROMPT + 3], past_key_values=past).logits
    assert past.get_seq_length() == PROMPT + 3 and torch.allclose(first[:, 1:], again, atol=1e-5)


@pytest.mark.real
def test_scoring_is_decoding_on_a_trained_model(real_data: Path) -> None:
    loaded = load_model(str(real_data / "wiki-llama"))
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:2000]
    trained: Any = adapter_for(loaded.model)
    keeps = (100, 90, 80, 70) * (trained.shape.blocks // 4)
    plan = plan_of(trained.shape, keeps)
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:192]).reshape(2, 96)
    expected = masked(trained, plan, ids, 48)
    assert (decoded(installed(trained, plan), ids, 48) - expected)[:, 47:].abs().max() <= 1e-4
    assert (expected - dense_logits(trained)(ids))[:, 47:].abs().max() > 1e-2
