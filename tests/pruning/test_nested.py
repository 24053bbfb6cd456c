"""Nested ladders: the dense model at the top, zero-copy prefixes below, in one mapped file."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.cache import Cache
from autoprune.errors import SpaceError
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning import build
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import FILE, StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from autoprune.space import KINDS, Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny

Windows = NDArray[np.int32]
Build = Callable[..., StoredLadders]
OPTIONS = {"kv_groups": tuple(range(tiny.GROUPS + 1)), "width": (0, 8, 16, 24, tiny.FFN)}
FULL = {"attention": ("kv_groups", tiny.GROUPS), "ffn": ("width", tiny.FFN)}


def sublayer(kind: Any, count: int | None = None) -> SublayerPlan:
    setting, full = FULL[kind]
    return SublayerPlan.of(kind, **{setting: full if count is None else count})


def logits(adapter: LlamaAdapter, ladders: StoredLadders, plan: Plan, ids: Tensor) -> Tensor:
    found: list[Tensor] = []
    Supernet(adapter, ladders).run([plan], ids, lambda index, out: found.append(out.clone()))
    return found[0]


@pytest.mark.parametrize("settings", [{}, {"attention_bias": True, "mlp_bias": True}])
def test_the_full_option_gives_the_dense_logits(
    ladders_of: Build, windows: Windows, settings: dict[str, bool]
) -> None:
    model, ids = tiny.llama(**settings), tiny.token_ids((2, 16), seed=9)
    plan = Plan.of([(tiny.GROUPS, tiny.FFN)] * 3)
    with torch.inference_mode():
        wanted = model(input_ids=ids, use_cache=False).logits
    found = logits(LlamaAdapter(model), ladders_of(model, windows), plan, ids)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_an_option_holds_the_first_units_of_the_order(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama()
    adapter, ladders = LlamaAdapter(model), ladders_of(model, windows)
    for block in range(3):
        for kind in KINDS:
            kept = ladders.order(block, kind)[:1] if kind == "attention" else ladders.order(block, kind)[:7]
            wanted = adapter.units(kind).take(adapter.weights(block, kind), torch.tensor(kept))
            found = ladders.weights(block, sublayer(kind, len(kept)))
            assert found.keys() == wanted.keys()
            assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_options_are_views_of_the_full_weights(ladders_of: Build, windows: Windows) -> None:
    ladders = ladders_of(tiny.llama(), windows)
    for kind in KINDS:
        full = ladders.weights(1, sublayer(kind))
        for name, tensor in ladders.weights(1, sublayer(kind, 1)).items():
            assert tensor.data_ptr() == full[name].data_ptr(), f"{name} was copied"
            assert tensor.untyped_storage().data_ptr() == full[name].untyped_storage().data_ptr()


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="there is no map of the memory to read")
def test_weights_lie_in_the_mapped_file(ladders_of: Build, windows: Windows) -> None:
    ladders = ladders_of(tiny.llama(), windows)
    with open("/proc/self/maps", encoding="utf8") as maps:
        rows = [line.split() for line in maps if line.rstrip().endswith(FILE)]
    spans = [tuple(int(end, 16) for end in row[0].split("-")) for row in rows]
    for kind in KINDS:
        for name, tensor in ladders.weights(2, sublayer(kind, 1)).items():
            assert any(low <= tensor.data_ptr() < high for low, high in spans), f"{name} is not in {FILE}"


@pytest.mark.parametrize("count", [0, tiny.FFN + 1])
def test_an_option_that_does_not_exist_is_refused(ladders_of: Build, windows: Windows, count: int) -> None:
    with pytest.raises(SpaceError, match=f"block 0 ffn keeps {count} of {tiny.FFN} units"):
        ladders_of(tiny.llama(), windows).weights(0, sublayer("ffn", count))


def recipe(windows: Windows, **settings: Any) -> LadderRecipe:
    return LadderRecipe(**{"windows": windows, "sequences": 4, "options": OPTIONS, **settings})


@pytest.mark.parametrize("ladder", ["nested", "refit"])
def test_the_second_time_they_come_from_the_cache(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ladder: str
) -> None:
    adapter, cache = LlamaAdapter(tiny.llama(blocks=1)), Cache(tmp_path)
    first = ladder_folder(adapter, "digest", recipe(windows, ladder=ladder), cache)

    def never(*args: object) -> None:
        raise AssertionError("the ladders were built again")

    monkeypatch.setattr(build, f"build_{ladder}", never)
    assert ladder_folder(adapter, "digest", recipe(windows.copy(), ladder=ladder), cache) == first


def test_another_adapter_has_ladders_of_its_own(windows: Windows, tmp_path: Path) -> None:
    class Mine(LlamaAdapter):
        pass

    model, cache = tiny.llama(blocks=1), Cache(tmp_path)
    folders = {ladder_folder(a, "digest", recipe(windows), cache) for a in (LlamaAdapter(model), Mine(model))}
    assert len(folders) == 2


def test_what_they_depend_on_is_in_their_digest(windows: Windows) -> None:
    plan = Plan.of([(1, 8)])
    recipes = [
        recipe(windows),
        recipe((windows + 1) % tiny.VOCABULARY),
        recipe(windows[:3]),
        recipe(windows.reshape(-1, 8)),
        recipe(windows, sequences=3),
        recipe(windows, ladder="nested"),
        recipe(windows, criterion="activation"),
        recipe(windows, damping=0.1),
        recipe(windows, options={**OPTIONS, "width": (0, 8, 32)}),
        recipe(windows, reference=plan),
        recipe(windows, reference=Plan.of([(1, 16)])),
    ]
    found = [str(r.identity()) for r in recipes]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("bias", [True, False])
def test_a_bias_keeps_the_mean_output(ladders_of: Build, windows: Windows, bias: bool) -> None:
    """Of every option, on the calibration tokens that reach the sublayer; without it the mean moves."""
    model = tiny.llama(attention_bias=True, mlp_bias=True, noise=0.3)
    adapter, ladders = LlamaAdapter(model), ladders_of(model, windows, criterion="flap", bias=bias)
    with torch.inference_mode():
        state = adapter.embed(torch.from_numpy(windows).long())
        for block in range(3):
            for kind in KINDS:
                dense = adapter.weights(block, kind)
                wanted = adapter.run_sublayer(block, kind, state, dense).hidden.double().mean((0, 1))
                for count in OPTIONS[FULL[kind][0]][1:-1]:
                    plan = sublayer(kind, count)
                    kept = ladders.weights(block, plan)
                    found = adapter.run_sublayer(block, kind, state, kept, plan).hidden.double().mean((0, 1))
                    off = float((found - wanted).abs().max())
                    assert off < 1e-5 if bias else off > 1e-3, (block, kind, count)
                state = adapter.run_sublayer(block, kind, state, dense)


def test_the_bias_is_part_of_the_model_and_of_the_artifact(ladders_of: Build, windows: Windows) -> None:
    model = tiny.llama(attention_bias=True, mlp_bias=True, noise=0.3)
    adapter, ladders = LlamaAdapter(model), ladders_of(model, windows, bias=True)
    plan, ids = Plan.of([(1, 16), (tiny.GROUPS, 8), (0, 24)]), tiny.token_ids((2, 16), seed=9)
    built = adapter.install(plan, ladders.weights, torch.float32)
    with torch.inference_mode():
        wanted = built(input_ids=ids, use_cache=False).logits
    assert (logits(adapter, ladders, plan, ids) - wanted).abs().max() < 1e-4
    assert (logits(adapter, ladders_of(model, windows), plan, ids) - wanted).abs().max() > 1e-3
    plain, with_bias = (LadderRecipe(windows, 4, "nested", options=OPTIONS, bias=b) for b in (False, True))
    assert plain.identity() != with_bias.identity()
