"""Importance orders: what is planted is found, and chunks do not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.models.base import State
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.calibration import ranked_orders
from autoprune.pruning.criteria.activation import Activation
from autoprune.space import KINDS, Kind
from tests import tiny

Windows = NDArray[np.int32]


def orders(model: object, windows: Windows, sequences: int = 4) -> dict[tuple[int, Kind], list[int]]:
    with torch.inference_mode():
        found = ranked_orders(LlamaAdapter(model), windows, sequences)
        return {(block, kind): order.tolist() for block, kind, order in found}


def scores(model: object, windows: Windows, sequences: int) -> dict[tuple[int, Kind], Tensor]:
    """The criterion's scores in chunks of `sequences` windows, streamed by the test itself."""
    adapter, found = LlamaAdapter(model), {}
    with torch.inference_mode():
        chunks = [
            torch.from_numpy(windows[s : s + sequences]).long() for s in range(0, len(windows), sequences)
        ]
        states: list[State] = [adapter.embed(c) for c in chunks]
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                weights = adapter.weights(block, kind)
                criterion = Activation(kind, adapter.units(kind), weights)
                for state in states:
                    criterion.add(adapter.inner(block, kind, state, weights))
                states = [adapter.run_sublayer(block, kind, s, weights) for s in states]
                found[block, kind] = criterion.scores()
    return found


def test_a_dead_neuron_is_last_and_a_strong_one_first(windows: Windows) -> None:
    model = tiny.llama()
    mlp = model.model.layers[1].mlp
    mlp.down_proj.weight[:, 17] = 0  # dead on its way out
    mlp.up_proj.weight[31] *= 30
    found = orders(model, windows)[1, "ffn"]
    assert found[-1] == 17 and found[0] == 31


def test_a_dead_neuron_by_its_inputs_is_last(windows: Windows) -> None:
    model = tiny.llama()
    model.model.layers[0].mlp.gate_proj.weight[5] = 0
    assert orders(model, windows)[0, "ffn"][-1] == 5


@pytest.mark.parametrize("group", range(4))
def test_a_strong_group_is_first_and_a_dead_one_last(windows: Windows, group: int) -> None:
    model = tiny.llama(num_key_value_heads=4, num_attention_heads=8, hidden_size=64)
    attention, dead, size = model.model.layers[2].self_attn, (group + 1) % 4, tiny.HEAD_DIM
    attention.v_proj.weight[group * size : (group + 1) * size] *= 20
    attention.o_proj.weight[:, dead * 2 * size : (dead + 1) * 2 * size] = 0
    found = orders(model, windows)[2, "attention"]
    assert found[0] == group and found[-1] == dead


def test_scores_are_the_energy_of_each_units_contribution(windows: Windows) -> None:
    model = tiny.llama(blocks=1)
    adapter = LlamaAdapter(model)
    ids = torch.from_numpy(windows).long()
    found = scores(model, windows, len(windows))
    with torch.inference_mode():
        state = adapter.embed(ids)
        for kind in KINDS:
            weights, count = adapter.weights(0, kind), adapter.units(kind).count
            inner, out = (
                adapter.inner(0, kind, state, weights),
                weights["o" if kind == "attention" else "down"],
            )
            size = out.shape[1] // count
            for unit in range(count):
                own = slice(unit * size, (unit + 1) * size)
                energy = (inner[..., own].double() @ out[:, own].double().T).square().sum()
                assert torch.isclose(found[0, kind][unit], energy, rtol=1e-9)
            state = adapter.run_sublayer(0, kind, state, weights)


@pytest.mark.parametrize("sequences", [1, 2, 5])
def test_chunks_change_the_statistics_by_rounding_only(windows: Windows, sequences: int) -> None:
    model = tiny.llama()
    whole, parts = scores(model, windows, len(windows)), scores(model, windows, sequences)
    for site, wanted in whole.items():
        assert torch.allclose(parts[site], wanted, rtol=1e-9, atol=0.0), site
    assert orders(model, windows, sequences) == orders(model, windows, len(windows))


def test_equal_units_keep_their_order(windows: Windows) -> None:
    model = tiny.llama(blocks=1)
    model.model.layers[0].mlp.down_proj.weight[:] = 0
    assert orders(model, windows)[0, "ffn"] == list(range(tiny.FFN))
