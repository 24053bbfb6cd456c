"""Checkpoints in int8: smaller files that give back what was rounded, run in int8, and are refused without kernels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from autoprune.kernels import native
from autoprune.kernels.dense import DenseLinear
from autoprune.kernels.int8 import MANY, Int8Linear, rounded
from autoprune.kernels.selector import GAIN, RoundedLinear, Selector
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import autoprune
from autoprune.cache import Cache
from autoprune.errors import ExportError, KernelError, UnsupportedModelError
from autoprune.export.assemble import assemble
from autoprune.export.card import int8_section
from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.int8 import (
    FILE,
    FOLDER,
    check_int8,
    check_masks,
    expected_bytes,
    load_int8,
    prove_int8,
    round_in_place,
    rounded_maps,
)
from autoprune.export.running import run_fast, run_int8
from autoprune.models import adapter_for
from autoprune.patterns import masks_of
from autoprune.pruning.masks.choose import mask_of
from autoprune.shape import full_plan
from autoprune.space import Plan, SublayerPlan
from tests.families import FAMILIES

IDS = torch.arange(12)[None] % 50
MASKS = {"attention": {"q.unstructured": 40}, "ffn": {"up.unstructured": 30}}


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if native.missing():
        pytest.skip(native.missing())


def adapter_of(name: str) -> Any:
    family = FAMILIES[name]
    return adapter_for(family.make(next(iter(family.variants))))


@pytest.fixture
def adapter() -> Any:
    return adapter_of("llama")


def plan_of(adapter: Any, masks: Mapping[str, Mapping[str, int]]) -> Plan:
    sublayers = full_plan(adapter.shape).sublayers
    return Plan(
        tuple(SublayerPlan.of(s.kind, **dict(s.settings), **masks.get(s.kind, {})) for s in sublayers)
    )


def built(adapter: Any, plan: Plan, dtype: torch.dtype = torch.bfloat16) -> Any:
    def weights(block: int, kept: SublayerPlan) -> Mapping[str, Tensor]:
        found = dict(adapter.weights(block, kept.kind))
        for name, (pattern, option) in masks_of(kept).items():
            found[name] = torch.where(mask_of(pattern, found[name].abs(), option), found[name], 0.0)
        return found

    return assemble(adapter, plan, weights, dtype)


def logits(model: Any, ids: Tensor = IDS) -> Tensor:
    with torch.inference_mode():
        return model(ids, use_cache=False).logits.float()  # type: ignore[no-any-return]


def selector(tmp_path: Path, gain: Any) -> Selector:
    measure = gain if callable(gain) else lambda layer, tokens: gain
    return Selector(cache=Cache(tmp_path / "cache"), measure=measure)


@pytest.mark.parametrize("masks", [{}, MASKS], ids=["dense", "masked"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_the_file_is_smaller_and_gives_back_what_was_rounded(
    adapter: Any, tmp_path: Path, masks: Any, dtype: torch.dtype
) -> None:
    plan = plan_of(adapter, masks)
    model = built(adapter, plan, dtype)
    maps = rounded_maps(model, adapter.layout)
    assert len(maps) == 7 * adapter.shape.blocks and all(".layers." in name for name in maps)
    thin = {name for name, matrix in maps.items() if matrix.thin}
    assert {name.rpartition(".")[2] for name in thin} == ({"q_proj", "up_proj"} if masks else set())
    whole, small, dense = tmp_path / "whole", tmp_path / "small", sum(p.numel() for p in model.parameters())
    save_checkpoint(model, None, whole, "", plan)
    save_checkpoint(model, None, small, "", plan, None, maps)
    before = (whole / "model.safetensors").stat().st_size
    saved = sum(m.values.numel() * dtype.itemsize - m.bytes for m in maps.values())
    after = (small / FOLDER / FILE).stat().st_size
    assert (
        saved > 0.3 * before and abs(before - saved - after) < 8192 and not list(small.glob("*.safetensors"))
    )
    if dtype is torch.float32:
        trip = prove_int8(model, maps, small, IDS, dense)
        assert trip.file_bytes == after and trip.max_logit_difference < 1e-5 and trip.parameters == dense
    round_in_place(model, maps, spread=True)
    loaded = load_checkpoint(small)
    assert loaded.dtype is dtype and torch.equal(
        logits(loaded), logits(model)
    )  # `model` was spread out by the proof
    assert not torch.equal(logits(loaded), logits(load_checkpoint(whole))), "nothing was rounded"
    assert load_int8(whole) == {}


def test_a_changed_file_does_not_pass(adapter: Any, tmp_path: Path) -> None:
    plan = plan_of(adapter, {})
    model = built(adapter, plan)
    maps = rounded_maps(model, adapter.layout)
    save_checkpoint(model, None, tmp_path / "o", "", plan, None, maps)
    name = next(iter(maps))
    other = replace(maps[name], scale=maps[name].scale * 1.5)
    with pytest.raises(ExportError, match=f"int8 {name} comes back different"):
        prove_int8(model, maps | {name: other}, tmp_path / "o", IDS, 1)
    with pytest.raises(ExportError, match="comes back different"):
        prove_int8(model, maps | {"another": other}, tmp_path / "o", IDS, 1)
    file = tmp_path / "o" / FOLDER / FILE
    state = load_file(file)
    save_file({n: t for n, t in state.items() if "norm" not in n}, file, metadata=_metadata(file))
    with pytest.raises(UnsupportedModelError, match="its weights are not those of its config"):
        load_checkpoint(tmp_path / "o")


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())


def test_loaders_that_do_not_know_int8_say_so(adapter: Any, tmp_path: Path) -> None:
    plan = plan_of(adapter, {})
    model = built(adapter, plan)
    save_checkpoint(model, None, tmp_path / "o", "", plan, None, rounded_maps(model, adapter.layout))
    with pytest.raises(OSError, match="no file named model.safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "o")


@pytest.mark.parametrize(("gain", "runs"), [(2.0, True), (GAIN - 0.01, False)])
def test_loaded_it_runs_in_int8_where_that_gains(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gain: float, runs: bool
) -> None:
    plan = plan_of(adapter, MASKS)
    model = built(adapter, plan)
    save_checkpoint(model, None, tmp_path / "o", "", plan, None, rounded_maps(model, adapter.layout))
    monkeypatch.setattr(Selector, "_timed", lambda self, layer, tokens: gain)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    loaded, of = autoprune.load(tmp_path / "o"), 7 * adapter.shape.blocks
    said = f"{of * runs} of {of} int8 matrices run in int8 when decoding, {of * runs} when reading a prompt"
    assert loaded.autoprune_kernels.startswith(said)
    assert sum(isinstance(m, RoundedLinear) for m in loaded.modules()) == of * runs
    assert all(m.dense is None for m in loaded.modules() if isinstance(m, RoundedLinear)), (
        "weights held twice"
    )
    plain = autoprune.load(tmp_path / "o", kernels=False)
    assert not any(isinstance(m, (RoundedLinear, DenseLinear)) for m in plain.modules())
    for ids in (IDS[:, :1], IDS):
        wanted, found = logits(plain, ids), logits(loaded, ids)
        assert float((found - wanted).abs().max()) < 0.05 * float(wanted.abs().max())


def test_a_matrix_may_be_in_int8_for_few_tokens_only(adapter: Any, tmp_path: Path) -> None:
    model = built(adapter, plan_of(adapter, {}))
    maps = rounded_maps(model, adapter.layout)
    few = selector(tmp_path, lambda layer, tokens: 2.0 if tokens == 1 else 0.9)
    done = run_int8(model, maps, few)
    assert (done.few, done.many, done.of) == (len(maps), 0, len(maps))
    name = next(iter(maps))
    layer, x = model.get_submodule(name), torch.randn(MANY + 2, maps[name].values.shape[1]).bfloat16()
    dense = maps[name].to_dense().bfloat16()
    assert torch.equal(layer(x), torch.nn.functional.linear(x, dense, layer.dense.bias))
    assert torch.equal(layer(x[:1]), layer.few(x[:1])) and not torch.equal(layer(x[:1]), layer.dense(x[:1]))


def test_a_bit_a_weight_is_taken_where_it_gains_more(tmp_path: Path) -> None:
    weight = torch.randn(16, 64) * (torch.rand(16, 64) < 0.3)
    for better in (True, False):
        gain = lambda layer, tokens, b=better: 3.0 if getattr(layer, "sparse", None) is b else 2.0  # noqa: E731
        made = selector(tmp_path / str(better), gain).rounded(rounded(weight), None)
        assert made.few is not None and made.few.sparse is better
        assert made.many is not None and not made.many.sparse and made.dense is None
    assert selector(tmp_path / "full", 2.0).rounded(rounded(torch.randn(16, 64)), None).few.sparse is False  # type: ignore[union-attr]


def test_many_tokens_give_what_one_by_one_gives(adapter: Any) -> None:
    layer = Int8Linear(rounded(torch.randn(24, 64)), torch.randn(24))
    x = torch.randn(2, MANY, 64)
    one = torch.stack([torch.stack([layer(token) for token in row]) for row in x])
    assert torch.allclose(layer(x), one, atol=1e-4)


def test_everything_rounded_is_not_the_model(adapter: Any) -> None:
    model = built(adapter, plan_of(adapter, {}), torch.float32)
    maps, before = rounded_maps(model, adapter.layout), logits(model)
    spread = logits(round_in_place(model, maps, spread=True))
    tokens = logits(round_in_place(model, maps))
    assert sum(isinstance(m, Int8Linear) for m in model.modules()) == len(maps)
    assert 0 < float((spread - before).norm()) < 0.05 * float(before.norm())
    assert 0 < float((tokens - spread).norm()) < 0.05 * float(before.norm())


def test_what_has_no_int8_kernel_is_refused(adapter: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, bf16 = adapter.layout, torch.bfloat16
    check_int8(layout, bf16, False, "--int8")
    for given, says in (
        ((layout, bf16, True), "a classifier decodes nothing"),
        ((None, bf16, False), "has no linear maps"),
        ((adapter_of("gpt2").layout, bf16, False), "has no linear maps"),
        ((adapter_of("qwen3_moe").layout, bf16, False), "stacks experts"),
        ((layout, torch.float16, False), "not torch.float16"),
    ):
        with pytest.raises(KernelError, match=f"^--int8: .*{says}") as told:
            check_int8(*given, "--int8")
        assert "\n" not in str(told.value)
    check_masks(plan_of(adapter, MASKS), "--int8")
    with pytest.raises(KernelError, match=r"^--int8: no int8 kernel for the pattern 8x2 of 0.attention.o"):
        check_masks(plan_of(adapter, {"attention": {"o.8x2": 50}}), "--int8")
    monkeypatch.setattr(native, "missing", lambda: "there is no C++ compiler")
    with pytest.raises(KernelError, match="no int8 kernels here: there is no C"):
        check_int8(layout, bf16, False, "--int8")


def test_without_kernels_a_checkpoint_still_runs(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = built(adapter, plan_of(adapter, {}))
    maps = rounded_maps(model, adapter.layout)
    monkeypatch.setattr(native, "missing", lambda: "none here")
    assert "0 of" in run_fast(model, adapter.layout, {}, 1, maps)
    assert not any(isinstance(m, RoundedLinear) for m in model.modules())


def test_the_card_counts_bytes(adapter: Any) -> None:
    model = built(adapter, plan_of(adapter, {}))
    maps = rounded_maps(model, adapter.layout)
    whole = sum(p.nbytes for p in model.parameters())
    assert expected_bytes(model, maps) == whole - sum(
        m.values.numel() - 4 * len(m.scale) for m in maps.values()
    )
    assert int8_section(3, 2000, 1040).startswith("3 linear maps") and "1,040" in int8_section(3, 2000, 1040)
