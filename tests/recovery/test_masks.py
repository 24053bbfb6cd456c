"""Zeros stay zeros, whether single weights or whole rows, and with every way a step could move them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from autoprune.recovery.masks import Masks


def _model() -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6))
    with torch.no_grad():
        model[0].weight[1] = 0  # a neuron that is gone, its bias too
        model[0].bias[1] = 0
        model[0].weight[2, 3] = 0  # a single weight
        model[0].bias[4] = 0  # a bias of a living neuron
    return model


def test_gradients_of_zeros_vanish_and_no_others() -> None:
    model = _model()
    masks, parameters = Masks(model), dict(model.named_parameters())
    assert len(masks) == 4 + 1 + 1
    for parameter in parameters.values():
        parameter.grad = torch.ones_like(parameter)
    masks.on_gradients(parameters)
    assert (parameters["0.weight"].grad == 0).nonzero().tolist() == [[1, 0], [1, 1], [1, 2], [1, 3], [2, 3]]
    assert (parameters["0.bias"].grad == 0).nonzero().tolist() == [[1]]
    assert bool((parameters["1.bias"].grad == 1).all())  # all zero at the start, but not pruned


def test_weights_that_moved_are_set_to_zero_again() -> None:
    model = _model()
    masks, parameters = Masks(model), dict(model.named_parameters())
    with torch.no_grad():
        for parameter in parameters.values():
            parameter.add_(1)
    masks.on_weights(parameters)
    assert int((parameters["0.weight"] == 0).sum()) == 5 and int((parameters["0.bias"] == 0).sum()) == 1


@pytest.mark.parametrize("pattern", ["single", "rows"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_training_keeps_shapes_and_zeros(
    make: Any, go: Any, student: Any, pattern: str, decay: float
) -> None:
    weight = student.model.layers[0].mlp.up_proj.weight
    with torch.no_grad():
        if pattern == "single":
            weight[torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5] = 0
        else:
            weight[3:7] = 0
    zeros = {n: (p == 0).clone() for n, p in student.named_parameters() if p.ndim > 1}
    start = {n: p.detach().clone() for n, p in student.named_parameters()}
    done = go(make(weight_decay=decay))
    assert set(done.weights) == set(start) and done.kept > 0
    for name, tensor in done.weights.items():
        assert tensor.shape == start[name].shape
        if name in zeros:
            assert bool((tensor[zeros[name]] == 0).all()), name
    up = done.weights["model.layers.0.mlp.up_proj.weight"]
    assert bool((up != start["model.layers.0.mlp.up_proj.weight"]).any())
    assert int((up == 0).sum()) == int(zeros["model.layers.0.mlp.up_proj.weight"].sum()) > 0
