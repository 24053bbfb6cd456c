"""Checkpoints of masked plans: zeros in place, names in the config, and a packed file that gives the same back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from autoprune.errors import ExportError
from autoprune.export.assemble import assemble
from autoprune.export.card import masks_section
from autoprune.export.checkpoint import load_checkpoint, save_checkpoint
from autoprune.export.packed import FILE, FOLDER, load_packed, masks, pack_model, prove_packed
from autoprune.export.roundtrip import prove
from autoprune.models import adapter_for
from autoprune.patterns import masks_of, packed_bytes
from autoprune.pruning.masks.choose import mask_of
from autoprune.shape import AnalyticCosts, full_plan, matrices
from autoprune.space import KINDS, Kind, Plan, SublayerPlan, plan_cost
from tests.families import FAMILIES, VOCABULARY

MASKS: dict[Kind, dict[str, int]] = {
    "attention": {"q.unstructured": 50, "k.4": 2, "o.8x1": 25},
    "ffn": {"up.4": 1, "down.unstructured": 30},
}


def masked_plan(adapter: Any) -> Plan:
    """The full sizes and a mask on some matrices of every block but the last, whose FFN is gone."""
    sublayers = []
    for s in full_plan(adapter.shape).sublayers:
        settings = dict(s.settings) | MASKS[s.kind]
        last = len(sublayers) == 2 * adapter.shape.blocks - 1
        sublayers.append(SublayerPlan.of(s.kind, **(dict.fromkeys(settings, 0) if last else settings)))
    return Plan(tuple(sublayers))


def weights_of(adapter: Any) -> Any:
    """The dense weights with the smallest ones zero."""

    def weights(block: int, kept: SublayerPlan) -> Mapping[str, Tensor]:
        found = dict(adapter.weights(block, kept.kind))
        for name, (pattern, option) in masks_of(kept).items():
            found[name] = torch.where(mask_of(pattern, found[name].abs(), option), found[name], 0.0)
        return found

    return weights


@pytest.mark.parametrize("name", ["llama", "gpt2", "phi3"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_matrices_are_those_of_the_checkpoint(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    family = FAMILIES[name]
    adapter: Any = adapter_for(family.make(next(iter(family.variants))))
    plan = masked_plan(adapter)
    model = assemble(adapter, plan, weights_of(adapter), dtype)
    packed = pack_model(adapter, model, plan)
    assert packed.keys() == masks(plan).keys() and len(packed) == 3 * 3 + 2 * 2
    to = tmp_path / "out"
    save_checkpoint(model, None, to, "", plan, packed)
    stored = prove_packed(adapter, load_checkpoint(to), plan, to)
    expected = 0
    for at, sublayer in enumerate(plan.sublayers):
        for matrix, (pattern, option) in masks_of(sublayer).items() if not sublayer.gone else ():
            rows, columns = matrices(adapter.shape, sublayer)[matrix]
            expected += packed_bytes(pattern, rows, columns, option, dtype.itemsize)
            dense = load_packed(to)[f"{at // 2}.{KINDS[at % 2]}.{matrix}"].to_dense()
            wanted = weights_of(adapter)(at // 2, sublayer)[matrix].to(dtype)
            assert dense.dtype == dtype and torch.equal(dense, wanted)
    assert stored == expected
    config = json.loads((to / "config.json").read_text())
    assert config["autoprune_masks"]["0.attention.k"] == ["4", 2] and len(config["autoprune_masks"]) == 13
    assert not list(to.glob("packed*.safetensors")), "loaders of weights must not see it"


def test_a_masked_checkpoint_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    adapter: Any = adapter_for(FAMILIES["llama"].make("tied"))
    plan, to = masked_plan(adapter), tmp_path / "out"
    model = assemble(adapter, plan, weights_of(adapter), torch.float32)
    save_checkpoint(model, None, to, "", plan, pack_model(adapter, model, plan))
    ids = torch.randint(1, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(3))
    costs = AnalyticCosts(adapter.shape)
    trip = prove(model, to, ids, int(plan_cost(plan.unmasked, costs)["params_total"]))
    assert trip.parameters > plan_cost(plan, costs)["params_total"], "the file holds zeros, costs do not"
    found = load_packed(to)
    assert sum(p.bytes for p in found.values()) < sum(4 * p.rows * p.columns for p in found.values())


def test_a_packed_file_that_differs_is_found_out(tmp_path: Path) -> None:
    adapter: Any = adapter_for(FAMILIES["llama"].make("tied"))
    plan, to = masked_plan(adapter), tmp_path / "out"
    model = assemble(adapter, plan, weights_of(adapter), torch.float32)
    save_checkpoint(model, None, to, "", plan, pack_model(adapter, model, plan))
    file = to / FOLDER / FILE
    facts, tensors = _metadata(file), load_file(file)
    tensors["1.ffn.up.values"][0, 0] += 1
    save_file(tensors, file, metadata=facts)
    with pytest.raises(ExportError, match=r"packed 1\.ffn\.up comes back different"):
        prove_packed(adapter, model, plan, to)
    file.unlink()
    with pytest.raises(ExportError, match="does not hold the plan's masked matrices"):
        prove_packed(adapter, model, plan, to)


def test_weights_without_their_zeros_are_refused() -> None:
    adapter: Any = adapter_for(FAMILIES["llama"].make("tied"))
    plan = masked_plan(adapter)
    model = assemble(adapter, plan, lambda b, s: adapter.weights(b, s.kind), torch.float32)
    with pytest.raises(ExportError, match="holds more weights than"):
        pack_model(adapter, model, plan)


def test_an_unmasked_plan_has_no_packed_file_and_no_masks_in_its_config(tmp_path: Path) -> None:
    adapter: Any = adapter_for(FAMILIES["llama"].make("tied"))
    plan, to = full_plan(adapter.shape), tmp_path / "out"
    model = assemble(adapter, plan, weights_of(adapter), torch.float32)
    save_checkpoint(model, None, to, "", plan, pack_model(adapter, model, plan))
    assert not (to / FOLDER).exists() and load_packed(to) == {}
    assert "autoprune_masks" not in json.loads((to / "config.json").read_text())


def test_the_card_says_what_is_packed_and_what_is_not() -> None:
    text = masks_section(13, 1_234_567, 654_321)
    assert "13 matrices" in text and "(1,234,567 bytes)" in text and "(654,321 bytes, index included)" in text
    assert "runs them packed where a kernel is faster" in text


def _metadata(file: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as opened:
        return dict(opened.metadata())
