"""What is timed does the work it says, and the same every time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from autoprune.errors import SettingError
from autoprune.hardware import workload
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import Workload, decode, prefill, sample_models
from autoprune.space import Plan

WORK = Workload(batch=2, prefill_tokens=12, context=10, decode_steps=3, rounds=5)
PLANS = {"dense": [(2, 32), (2, 32)], "first gone": [(0, 32), (1, 8)], "nothing": [(0, 0), (0, 0)]}


class Spy:
    """Records what a model is called with, and what it answers."""

    def __init__(self, model: Any) -> None:
        self.model, self.config, self.device, self.seen = model, model.config, model.device, []

    def can_generate(self) -> bool:
        """It is a language model."""
        return True

    def __call__(self, **given: Any) -> Any:
        assert torch.is_inference_mode_enabled()
        answer = self.model(**given)
        self.seen.append((given, answer))
        return answer


@pytest.mark.parametrize("blocks", PLANS.values(), ids=PLANS)
def test_decode_starts_every_call_at_the_context(build: Any, blocks: list[tuple[int, int]]) -> None:
    spy = Spy(build(Plan.of(blocks)))
    call = decode(spy, WORK)
    spy.seen.clear()
    for _ in range(3):
        call()
    first = [answer.logits for _, answer in spy.seen]
    for _ in range(3):
        call()
    assert [given["position_ids"].tolist() for given, _ in spy.seen] == [[[10]], [[11]], [[12]]] * 2
    assert all(given["input_ids"].shape == (2, 1) for given, _ in spy.seen)
    second = [answer.logits for _, answer in spy.seen[3:]]
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))  # the cache was put back
    filled = [layer for layer in call.cache.layers if getattr(layer, "keys", None) is not None]
    assert filled and all(layer.get_seq_length() == 10 + 3 for layer in filled)


def test_steps_that_take_unlike_times_are_one_call(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where prompt tokens come back the first step is the dearest: a sample has all of them, and tells one's share."""
    models = {name: Spy(build(Plan.of(PLANS["dense"]))) for name in ("plain", "dropping")}
    models["dropping"].base_model = SimpleNamespace(drops=True)  # type: ignore[attr-defined]
    calls = {name: decode(spy, WORK) for name, spy in models.items()}
    for name, count in (("plain", 1), ("dropping", 3), ("dropping", 3)):
        models[name].seen.clear()
        calls[name]()
        assert len(models[name].seen) == count
    made = {name: spy.model for name, spy in models.items()}
    made["dropping"].base_model.drops = True
    monkeypatch.setattr(
        workload, "interleaved", lambda items, *_, **__: {n: Samples((6.0,), wall=(9.0,)) for n in items}
    )
    found = sample_models(made, WORK)
    assert found["plain"]["decode"].seconds == (6.0,) and found["dropping"]["prefill"].seconds == (6.0,)
    assert found["dropping"]["decode"].seconds == (2.0,) and found["dropping"]["decode"].wall == (3.0,)


def test_decode_equals_the_uncached_model(build: Any) -> None:
    model = build(Plan.of(PLANS["first gone"]))
    spy = Spy(model)
    call = decode(spy, WORK)
    for _ in range(3):
        call()
    ids = torch.cat([given["input_ids"] for given, _ in spy.seen], dim=1)
    with torch.inference_mode():
        whole = model(input_ids=ids, use_cache=False).logits[:, 10:]
    cached = torch.cat([answer.logits for _, answer in spy.seen[1:]], dim=1)
    assert torch.allclose(whole, cached, atol=1e-4)


@pytest.mark.parametrize("blocks", PLANS.values(), ids=PLANS)
def test_prefill_starts_empty_and_asks_for_the_last_logits_only(
    build: Any, blocks: list[tuple[int, int]]
) -> None:
    spy = Spy(build(Plan.of(blocks)))
    call = prefill(spy, WORK)
    call()
    call()
    (given, one), (_, two) = spy.seen
    assert given["input_ids"].shape == (2, 12) and one.logits.shape == (2, 1, 64)
    assert torch.equal(one.logits, two.logits)
    filled = [layer for layer in call.cache.layers if getattr(layer, "keys", None) is not None]
    assert filled and all(layer.get_seq_length() == 12 for layer in filled)


def test_a_stock_model_without_any_attention_layer_runs() -> None:
    config = LlamaConfig(vocab_size=64, hidden_size=16, num_attention_heads=4, num_hidden_layers=1)
    model = LlamaForCausalLM(config).eval()
    model.model.layers = torch.nn.ModuleList()
    model.config.layer_types = ["moe"]
    prefill(model, WORK)()
    decode(model, WORK)()


def test_a_sliding_window_is_put_back(build: Any) -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    spy = Spy(
        MistralForCausalLM(
            MistralConfig(vocab_size=64, num_hidden_layers=1, sliding_window=4, **sizes)
        ).eval()
    )
    call = decode(spy, WORK)
    spy.seen.clear()
    for _ in range(4):
        call()
    assert torch.equal(spy.seen[0][1].logits, spy.seen[3][1].logits)


def test_samples_are_per_prefill_and_per_token(build: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    models = {name: build(Plan.of(blocks)) for name, blocks in PLANS.items()}
    models["dense"].train()
    rounds: list[tuple[int, int]] = []
    samples = sample_models(models, WORK, 0, lambda done, of: rounds.append((done, of)), allow_contended=True)
    assert set(samples) == set(PLANS) and all(set(s) == {"prefill", "decode"} for s in samples.values())
    assert all(value > 0 for s in samples.values() for m in s.values() for value in m.seconds)
    assert rounds == [(i + 1, 5) for i in range(5)]
    assert torch.get_num_threads() == before and not models["dense"].training

    from autoprune.hardware import workload
    from autoprune.hardware.timing import Samples

    monkeypatch.setattr(
        workload, "interleaved", lambda items, *_, **__: dict.fromkeys(items, Samples((6.0,)))
    )
    fake = sample_models(models, WORK)["dense"]
    assert fake["prefill"].seconds == (6.0,) and fake["decode"].seconds == (6.0,)


def test_mistakes_name_the_setting(dense: Any) -> None:
    with pytest.raises(SettingError, match=r"workload.decode_steps=0 must be at least 1"):
        Workload(decode_steps=0)
    with pytest.raises(
        SettingError, match="workload.prefill_tokens=65 is more than the model's 64 positions"
    ):
        prefill(dense, Workload(prefill_tokens=65))
    with pytest.raises(SettingError, match=r"context \+ decode_steps=68 is more"):
        decode(dense, Workload(context=60))
    with pytest.raises(SettingError, match="allowed is one device"):
        sample_models({}, WORK)
