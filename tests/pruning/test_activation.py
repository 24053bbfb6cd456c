"""Importance orders by activation energy: what is planted is found, and chunks do not matter."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.calibration import Stream
from autoprune.pruning.criteria.activation import activation_order, activation_scores
from autoprune.pruning.ladders import OUTPUT, StoredLadders
from autoprune.space import KINDS, Kind
from tests import tiny

Windows = NDArray[np.int32]
Build = Callable[..., StoredLadders]


@pytest.fixture
def order(ladders_of: Build, windows: Windows) -> Callable[..., list[int]]:
    """The order of a site in ladders ranked by activation."""

    def find(model: object, block: int, kind: Kind) -> list[int]:
        return ladders_of(model, windows, criterion="activation").order(block, kind)

    return find


def seconds(model: object, windows: Windows, sequences: int) -> dict[tuple[int, Kind], Tensor]:
    """Second moments of every site of the dense model."""
    adapter, found = LlamaAdapter(model), {}
    with torch.inference_mode():
        stream = Stream(adapter, windows, sequences)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                weights = adapter.weights(block, kind)
                found[block, kind] = stream.moments(block, kind).second
                stream.advance(block, kind, weights, weights)
    return found


def test_a_dead_neuron_is_last_and_a_strong_one_first(order: Callable[..., list[int]]) -> None:
    model = tiny.llama()
    mlp = model.model.layers[1].mlp
    mlp.down_proj.weight[:, 17] = 0  # dead on its way out
    mlp.up_proj.weight[31] *= 30
    found = order(model, 1, "ffn")
    assert found[-1] == 17 and found[0] == 31


def test_a_dead_neuron_by_its_inputs_is_last(order: Callable[..., list[int]]) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.gate_proj.weight[5] = 0
    assert order(model, 0, "ffn")[-1] == 5


@pytest.mark.parametrize("group", range(4))
def test_a_strong_group_is_first_and_a_dead_one_last(order: Callable[..., list[int]], group: int) -> None:
    model = tiny.llama(num_key_value_heads=4, num_attention_heads=8, hidden_size=64)
    attention, dead, size = model.model.layers[2].self_attn, (group + 1) % 4, tiny.HEAD_DIM
    attention.v_proj.weight[group * size : (group + 1) * size] *= 20
    attention.o_proj.weight[:, dead * 2 * size : (dead + 1) * 2 * size] = 0
    found = order(model, 2, "attention")
    assert found[0] == group and found[-1] == dead


def test_scores_are_the_energy_of_each_units_contribution(windows: Windows) -> None:
    model = tiny.llama(blocks=1)
    adapter = LlamaAdapter(model)
    found = seconds(model, windows, len(windows))
    with torch.inference_mode():
        state = adapter.embed(torch.from_numpy(windows).long())
        for kind in KINDS:
            weights, count = adapter.weights(0, kind), adapter.units(kind).count
            inner, out = adapter.inner(0, kind, state, weights), weights[OUTPUT[kind]]
            scores = activation_scores(found[0, kind], out, count)
            size = out.shape[1] // count
            for unit in range(count):
                own = slice(unit * size, (unit + 1) * size)
                energy = (inner[..., own].double() @ out[:, own].double().T).square().sum()
                assert torch.isclose(scores[unit], energy, rtol=1e-5)
            state = adapter.run_sublayer(0, kind, state, weights)


@pytest.mark.parametrize("sequences", [1, 7])
def test_chunks_change_the_moments_by_rounding_only(windows: Windows, sequences: int) -> None:
    model = tiny.llama()
    whole, parts = seconds(model, windows, len(windows)), seconds(model, windows, sequences)
    for site, wanted in whole.items():
        assert torch.allclose(parts[site], wanted, rtol=1e-4, atol=1e-6 * float(wanted.max())), site


def test_equal_units_keep_their_order() -> None:
    second, weight = torch.eye(8, dtype=torch.float64), torch.ones(3, 8)
    assert activation_order(second, weight, 4).tolist() == [0, 1, 2, 3]
