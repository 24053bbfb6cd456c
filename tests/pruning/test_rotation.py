"""Rotating and cutting the residual stream: the whole width is exact, and what is cut matters least."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.export.checkpoint import save_checkpoint
from autoprune.export.roundtrip import prove
from autoprune.models import adapter_for
from autoprune.pruning.rotation import FAMILIES, directions, rotated
from autoprune.run.stream import check_stream, dense_logits
from autoprune.shape import AnalyticCosts, full_plan
from autoprune.space import Plan, plan_cost
from tests import families
from tests.families import CASES, HIDDEN, VOCABULARY

ROTATED = [(name, variant) for name, variant in CASES if name in FAMILIES]
IDS = torch.randint(VOCABULARY, (4, 12), generator=torch.Generator().manual_seed(2))
WINDOWS = IDS.numpy().astype(np.int32)
NARROW = 24


def made(name: str = "llama", variant: str = "tied") -> tuple[Any, torch.Tensor]:
    """An adapter and the directions of its stream."""
    adapter: Any = adapter_for(families.model_of(name, variant))
    return adapter, directions(adapter, WINDOWS, 2)


def difference(a: Any, b: Any) -> float:
    """Of logits, to the largest."""
    one, other = dense_logits(a)(IDS), dense_logits(b)(IDS)
    return float((one - other).abs().max() / other.abs().max())


def test_there_are_some_of_every_family() -> None:
    assert {name for name, _ in ROTATED} == set(FAMILIES)


@pytest.mark.parametrize(("name", "variant"), ROTATED)
def test_the_whole_width_is_exact(name: str, variant: str) -> None:
    adapter, turn = made(name, variant)
    before = {n: p.clone() for n, p in adapter.model.state_dict().items()}
    turned = adapter_for(rotated(adapter, turn, HIDDEN))
    assert difference(turned, adapter) <= 1e-5
    assert all(torch.equal(p, before[n]) for n, p in adapter.model.state_dict().items())
    own, other = (dict(a.model.named_parameters()) for a in (adapter, turned))
    assert not torch.allclose(own["model.embed_tokens.weight"], other["model.embed_tokens.weight"])
    assert not {p.data_ptr() for p in own.values()} & {p.data_ptr() for p in other.values()}


@pytest.mark.parametrize(("name", "variant"), ROTATED)
def test_a_narrower_stream_is_a_smaller_stock_model(name: str, variant: str, tmp_path: Path) -> None:
    adapter, turn = made(name, variant)
    model = rotated(adapter, turn, NARROW)
    small: Any = adapter_for(model)
    assert type(model) is type(adapter.model) and small.shape.hidden == NARROW and not small.shape.tied
    corpus: Any = SimpleNamespace(windows=lambda _: WINDOWS)
    check_stream(SimpleNamespace(model=model, name="small"), small, corpus)  # type: ignore[arg-type]
    assert difference(small, adapter) > 1e-3
    plan = full_plan(small.shape)
    cost = plan_cost(plan, AnalyticCosts(small.shape))
    dense = plan_cost(plan, AnalyticCosts(adapter.shape))
    assert cost["params_total"] == sum(p.numel() for p in model.parameters())
    assert cost["params"] < dense["params"] and cost["flops"] < dense["flops"]
    assert cost["kv_bytes"] == dense["kv_bytes"]


def test_each_width_is_another_model() -> None:
    adapter, turn = made()
    errors = [difference(adapter_for(rotated(adapter, turn, w)), adapter) for w in (32, 28, 20, 8)]
    assert errors[0] <= 1e-5 < errors[1] and errors[1] < errors[3]


def test_directions_are_a_rotation_and_come_by_size() -> None:
    adapter, turn = made()
    assert turn.dtype == torch.float64
    assert torch.allclose(turn.T @ turn, torch.eye(HIDDEN, dtype=torch.float64), atol=1e-10)
    state, total = adapter.embed(IDS), torch.zeros(HIDDEN, dtype=torch.float64)
    for block in range(adapter.shape.blocks):
        for kind in ("attention", "ffn"):
            total += energy(state.hidden, turn)
            state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
    total += energy(state.hidden, turn)
    assert bool((total.diff() <= 1e-4 * total[0]).all())


def energy(hidden: torch.Tensor, turn: torch.Tensor) -> torch.Tensor:
    """Of each direction, tokens counting alike."""
    flat = hidden.double().flatten(0, -2)
    unit = flat / flat.square().mean(-1, keepdim=True).sqrt()
    return (unit @ turn).square().sum(0)


def test_a_stream_that_needs_fewer_dimensions_loses_nothing() -> None:
    """All that is written lies in a subspace of 24 dimensions, in no way along the axes."""
    model = families.FAMILIES["llama"].make("biases")
    basis = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(1))).Q[
        :, :NARROW
    ]
    onto = basis @ basis.T
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(model.model.embed_tokens.weight @ onto)
        for layer in model.model.layers:
            for writer in (layer.self_attn.o_proj, layer.mlp.down_proj):
                writer.weight.copy_(onto @ writer.weight)
                if writer.bias is not None:
                    writer.bias.copy_(onto @ writer.bias)
    adapter: Any = adapter_for(model)
    turn = directions(adapter, WINDOWS, 2)
    assert difference(adapter_for(rotated(adapter, turn, NARROW)), adapter) <= 1e-4
    assert difference(adapter_for(rotated(adapter, turn, NARROW - 4)), adapter) > 1e-3


def test_what_is_cut_matters_less_than_other_directions() -> None:
    adapter, turn = made()
    random = torch.linalg.qr(
        torch.randn(HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0)).double()
    ).Q
    dense = dense_logits(adapter)(IDS)
    errors = [
        float((dense_logits(adapter_for(rotated(adapter, t, 28)))(IDS) - dense).square().mean())
        for t in (turn, random, turn.flip(1))
    ]
    assert errors[0] < errors[1] < errors[2]


def test_a_checkpoint_comes_back_and_is_smaller(tmp_path: Path) -> None:
    adapter, turn = made()
    small: Any = adapter_for(rotated(adapter, turn, NARROW))
    sizes = {}
    for name, source in {"dense": adapter, "small": small}.items():
        full = (source.shape.kv_groups, source.shape.ffn)
        plan = Plan.of([full, (1, full[1]), (full[0], 16)])
        model = source.install(plan, lambda b, s, a=source: cut(a, b, s), torch.float32)
        save_checkpoint(model, None, tmp_path / name, "card", plan)
        expected = int(plan_cost(plan, AnalyticCosts(source.shape))["params_total"])
        trip = prove(model, tmp_path / name, IDS, expected)
        assert trip.max_logit_difference <= 1e-4
        sizes[name] = trip.file_bytes
    assert sizes["small"] < 0.9 * sizes["dense"]


def cut(adapter: Any, block: int, sublayer: Any) -> Any:
    """The first units."""
    units = adapter.units(sublayer.kind)
    count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
    return units.prefix(adapter.weights(block, sublayer.kind), count)
