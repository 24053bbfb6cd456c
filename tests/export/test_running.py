"""Masked matrices of a loaded checkpoint run packed: the same numbers, other modules, only where a kernel pays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from autoprune.kernels import native
from autoprune.kernels.dense import DenseLinear
from autoprune.kernels.linear import SparseLinear
from autoprune.kernels.selector import GAIN, ChosenLinear, Selector
from torch import Tensor

import autoprune
from autoprune.cache import Cache
from autoprune.export.assemble import assemble
from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.packed import pack_model
from autoprune.export.running import packed_bytes, run_dense, run_fast, run_packed
from autoprune.models import adapter_for
from autoprune.patterns import masks_of
from autoprune.pruning.masks.choose import mask_of
from autoprune.shape import full_plan
from autoprune.space import Plan, SublayerPlan
from tests.families import FAMILIES

MASKS = {"attention": {"q.8x2": 40, "o.unstructured": 30}, "ffn": {"up.8x2": 25, "down.4": 2}}


def gains(value: float) -> Any:
    """A selector that believes every kernel to be so much faster."""
    return lambda layer, tokens: value


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@pytest.fixture
def adapter() -> Any:
    family = FAMILIES["llama"]
    return adapter_for(family.make(next(iter(family.variants))))


@pytest.fixture
def plan(adapter: Any) -> Plan:
    sublayers = full_plan(adapter.shape).sublayers
    return Plan(tuple(SublayerPlan.of(s.kind, **dict(s.settings), **MASKS[s.kind]) for s in sublayers))


@pytest.fixture
def model(adapter: Any, plan: Plan) -> Any:
    def weights(block: int, kept: SublayerPlan) -> Mapping[str, Tensor]:
        found = dict(adapter.weights(block, kept.kind))
        for name, (pattern, option) in masks_of(kept).items():
            found[name] = torch.where(mask_of(pattern, found[name].abs(), option), found[name], 0.0)
        return found

    return assemble(adapter, plan, weights, torch.bfloat16)


def logits(model: Any, tokens: int) -> Tensor:
    ids = torch.arange(tokens)[None] % 50
    with torch.inference_mode():
        return model(ids, use_cache=False).logits.float()  # type: ignore[no-any-return]


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if native.missing():
        pytest.skip(native.missing())


@pytest.mark.parametrize(("gain", "runs"), [(2.0, True), (GAIN - 0.01, False)])
def test_the_same_logits_with_or_without(
    adapter: Any, plan: Plan, model: Any, cache: Cache, gain: float, runs: bool
) -> None:
    before = {tokens: logits(model, tokens) for tokens in (1, 12)}
    packed = pack_model(adapter, model, plan)
    done = run_packed(model, adapter.layout, packed, Selector(cache=cache, measure=gains(gain)))
    blocks = adapter.shape.blocks
    assert (done.few, done.many, done.of) == (3 * blocks * runs, 3 * blocks * runs, 4 * blocks)
    assert "no kernel for the pattern 4" in done.why and "masked matrices run packed" in done.text
    assert sum(isinstance(m, SparseLinear) for m in model.modules()) == 3 * blocks * runs
    assert (packed_bytes(model) > 0) is runs
    for tokens, wanted in before.items():
        assert float((logits(model, tokens) - wanted).abs().max()) < 0.02 * float(wanted.abs().max())


def test_a_matrix_may_run_packed_for_few_tokens_only(
    adapter: Any, plan: Plan, model: Any, cache: Cache
) -> None:
    packed = pack_model(adapter, model, plan)
    few = Selector(cache=cache, measure=lambda layer, tokens: 2.0 if tokens == 1 else 0.9)
    done = run_packed(model, adapter.layout, packed, few)
    assert done.few == 3 * adapter.shape.blocks and done.many == 0
    layer = next(m for m in model.modules() if isinstance(m, ChosenLinear))
    x = torch.randn(20, layer.packed.columns).bfloat16()  # type: ignore[union-attr]
    assert torch.equal(layer(x), torch.nn.functional.linear(x, layer.packed.to_dense()))  # type: ignore[union-attr]
    assert torch.equal(layer(x[:1]), layer.packed(x[:1]))  # type: ignore[misc]


def test_loading_a_checkpoint_runs_it_packed_unless_told_not_to(
    adapter: Any, plan: Plan, model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    to, wanted = tmp_path / "out", logits(model, 9)
    save_checkpoint(model, None, to, "", plan, pack_model(adapter, model, plan))
    monkeypatch.setattr(Selector, "_timed", lambda self, layer, tokens: 3.0)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    loaded = autoprune.load(to)
    assert loaded.autoprune_kernels.startswith(
        f"{3 * adapter.shape.blocks} of {4 * adapter.shape.blocks} masked"
    )
    assert float((logits(loaded, 9) - wanted).abs().max()) < 0.02 * float(wanted.abs().max())
    plain = autoprune.load(to, kernels=False)
    assert not any(isinstance(m, (ChosenLinear, DenseLinear)) for m in plain.modules())
    assert torch.equal(logits(plain, 9), logits(load_checkpoint(to), 9))


@pytest.mark.parametrize(("gain", "runs"), [(2.0, True), (GAIN - 0.01, False)])
def test_dense_models_run_on_the_faster_linear_maps(
    adapter: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch, gain: float, runs: bool
) -> None:
    monkeypatch.setattr("autoprune.kernels.selector.SMALLEST", 1)
    model = assemble(
        adapter, full_plan(adapter.shape), lambda b, kept: adapter.weights(b, kept.kind), torch.float32
    )
    of = sum(isinstance(m, torch.nn.Linear) for m in model.modules())
    before, names = {tokens: logits(model, tokens) for tokens in (1, 12)}, set(model.state_dict())
    done = run_dense(model, Selector(cache=cache, measure=gains(gain)))
    assert (done.few, done.many, done.of) == (
        of * runs,
        of * runs,
        of,
    ) and f"of {of} dense matrices" in done.text
    assert sum(isinstance(m, DenseLinear) for m in model.modules()) == of * runs
    for tokens, wanted in before.items():
        assert torch.allclose(logits(model, tokens), wanted, atol=1e-4 * float(wanted.abs().max()))
        assert runs or torch.equal(logits(model, tokens), wanted)
    assert set(model.state_dict()) == names
    assert model.get_output_embeddings().weight is not None
    model(torch.arange(5)[None]).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_switched_off_a_model_is_the_library_s(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.kernels.selector.SMALLEST", 1)
    monkeypatch.setenv("AUTOPRUNE_KERNELS", "off")
    monkeypatch.setattr(native, "missing", lambda: "AUTOPRUNE_KERNELS=off")
    model = assemble(
        adapter, full_plan(adapter.shape), lambda b, kept: adapter.weights(b, kept.kind), torch.float32
    )
    assert run_fast(model, adapter.layout, {}, 1) == "AUTOPRUNE_KERNELS=off"
    assert not any(type(m).__module__.startswith("autoprune.kernels") for m in model.modules())


def test_without_a_compiler_the_reason_is_told(
    adapter: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "missing", lambda: "there is no C++ compiler")
    model = assemble(
        adapter, full_plan(adapter.shape), lambda b, kept: adapter.weights(b, kept.kind), torch.bfloat16
    )
    said = run_fast(model, adapter.layout, {}, 1)
    assert "0 of" in said and "(there is no C++ compiler)" in said and "0 of 7 norms" in said
    assert logits(model, 5).isfinite().all()


def test_a_layer_that_somebody_watches_is_left(
    adapter: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.kernels.selector.SMALLEST", 1)
    holder = torch.nn.ModuleList([torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)])
    holder[0].register_forward_hook(lambda *_: None)
    assert run_dense(holder, Selector(cache=cache, measure=gains(2.0))).of == 1
    assert type(holder[0]) is torch.nn.Linear and type(holder[1]) is DenseLinear


def test_gains_are_measured_once_and_remembered(cache: Cache, model: Any, adapter: Any, plan: Plan) -> None:
    asked: list[int] = []

    def measure(layer: SparseLinear, tokens: int) -> float:
        asked.append(tokens)
        return 1.5

    packed = pack_model(adapter, model, plan)
    run_packed(model, adapter.layout, packed, Selector(cache=cache, measure=measure))
    kinds = len(asked)
    assert 0 < kinds <= 6, "blocks are alike: one measurement a size, form, density and number of tokens"
    layer = next(m for m in model.modules() if isinstance(m, SparseLinear))
    assert Selector(cache=cache, measure=measure).gain(layer, 1) == 1.5 and len(asked) == kinds


def test_a_real_measurement_says_something(cache: Cache) -> None:
    from autoprune.kernels.packing import blocks_of

    weight = torch.zeros(256, 512, dtype=torch.bfloat16)
    layer = SparseLinear("blocks", blocks_of(weight), 256, 512)
    assert Selector(cache=cache).gain(layer, 1) > 1.0, "an empty matrix is faster than a full one"
