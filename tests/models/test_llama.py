"""The block stream is the model, and its units are what the model computes with."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.errors import UnsupportedModelError
from autoprune.models import adapter_for
from autoprune.models.llama import LlamaAdapter
from autoprune.models.load import load_model
from autoprune.space import KINDS, Kind
from tests import tiny

OUT = {"attention": ("self_attn", "o_proj"), "ffn": ("mlp", "down_proj")}


def test_exact_stream_equals_the_models_own_forward(model: Any, logits: SimpleNamespace) -> None:
    ids = tiny.token_ids((3, 20))
    difference = (logits.stream(LlamaAdapter(model, exact=True), ids) - logits.stock(model, ids)).abs().max()
    assert difference <= 1e-5


def test_fast_stream_equals_it_relative_to_the_largest_logit(model: Any, logits: SimpleNamespace) -> None:
    ids = tiny.token_ids((3, 20))
    wanted = logits.stock(model, ids)
    difference = (logits.stream(LlamaAdapter(model), ids) - wanted).abs().max()
    assert difference <= 1e-5 * wanted.abs().max()


@pytest.mark.real
@pytest.mark.parametrize("name", ["hf-stories260K", "hf-babyllama105", "wiki-llama"])
def test_both_streams_equal_trained_models(real_data: Path, name: str, logits: SimpleNamespace) -> None:
    loaded = load_model(str(real_data / name))
    text = (real_data / "tinystories" / "tinystories.txt").read_text()[:2000]
    ids = torch.tensor(loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:128]).reshape(2, 64)
    wanted = logits.stock(loaded.model, ids)
    largest = wanted.abs().max()
    assert (logits.stream(LlamaAdapter(loaded.model), ids) - wanted).abs().max() <= 1e-5 * largest
    exact = (logits.stream(LlamaAdapter(loaded.model, exact=True), ids) - wanted).abs().max()
    assert exact <= 1e-5 * max(1.0, largest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sublayer_never_writes_into_its_input(model: Any, kind: Kind) -> None:
    adapter = LlamaAdapter(model)
    with torch.inference_mode():
        state = adapter.embed(tiny.token_ids((2, 8)))
        before = state.hidden.clone()
        after = adapter.run_sublayer(1, kind, state, adapter.weights(1, kind))
    assert torch.equal(state.hidden, before)
    assert not torch.equal(after.hidden, before)


@pytest.mark.parametrize("unit", [0, -1])
@pytest.mark.parametrize("kind", KINDS)
def test_dropping_a_unit_equals_zeroing_it_in_the_dense_model(
    model: Any, kind: Kind, unit: int, logits: SimpleNamespace
) -> None:
    adapter = LlamaAdapter(model)
    units = adapter.units(kind)
    lost = unit % units.count
    ids = tiny.token_ids((2, 12))
    keep = torch.tensor([u for u in range(units.count) if u != lost])
    if not len(keep):
        pytest.skip("the only group: dropping it is the zero option")
    zeroed = copy.deepcopy(model)
    part, name = OUT[kind]
    out = getattr(getattr(zeroed.model.layers[0], part), name)
    size = out.weight.shape[1] // units.count
    with torch.no_grad():
        out.weight[:, lost * size : (lost + 1) * size] = 0
    wanted = logits.stock(zeroed, ids)
    adapter._dense[0][kind] = units.take(adapter.weights(0, kind), keep)
    assert (logits.stream(adapter, ids) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (wanted - logits.stock(model, ids)).abs().max() > 1e-4, "the unit did nothing: the test is blind"


def test_taking_all_units_in_another_order_changes_nothing(model: Any, logits: SimpleNamespace) -> None:
    adapter, ids = LlamaAdapter(model), tiny.token_ids((2, 12))
    wanted = logits.stock(model, ids)
    for kind in KINDS:
        order = torch.from_numpy(np.random.default_rng(0).permutation(adapter.units(kind).count))
        adapter._dense[0][kind] = adapter.units(kind).take(adapter.weights(0, kind), order)
    assert (logits.stream(adapter, ids) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_family_without_adapter_is_refused_naming_those_there_are() -> None:
    from transformers import BloomConfig, BloomForCausalLM

    other = BloomForCausalLM(BloomConfig(vocab_size=20, hidden_size=16, n_layer=1, n_head=2))
    with pytest.raises(
        UnsupportedModelError, match="'bloom' has no adapter; supported: bert, deit, distilbert"
    ):
        adapter_for(other)
