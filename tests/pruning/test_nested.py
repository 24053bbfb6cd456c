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
from autoprune.pruning import nested
from autoprune.pruning.nested import FILE, NestedLadders, build_nested
from autoprune.space import KINDS, Plan, SublayerPlan
from autoprune.supernet import Supernet
from tests import tiny

Windows = NDArray[np.int32]
Build = Callable[..., NestedLadders]
FULL = {"attention": ("kv_groups", tiny.GROUPS), "ffn": ("width", tiny.FFN)}


def sublayer(kind: Any, count: int | None = None) -> SublayerPlan:
    setting, full = FULL[kind]
    return SublayerPlan.of(kind, **{setting: full if count is None else count})


def logits(adapter: LlamaAdapter, ladders: NestedLadders, plan: Plan, ids: Tensor) -> Tensor:
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


def test_the_second_time_they_come_from_the_cache(
    windows: Windows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, cache = LlamaAdapter(tiny.llama()), Cache(tmp_path)
    first = build_nested(adapter, "digest", windows, 4, cache)

    def never(*args: object) -> None:
        raise AssertionError("the ladders were built again")

    monkeypatch.setattr(nested, "ranked_orders", never)
    assert build_nested(adapter, "digest", windows.copy(), 4, cache) == first


def test_what_they_depend_on_is_in_their_digest(windows: Windows, tmp_path: Path) -> None:
    adapter, cache = LlamaAdapter(tiny.llama(blocks=1)), Cache(tmp_path)
    other_text = (windows + 1) % tiny.VOCABULARY
    folders = [
        build_nested(adapter, "digest", windows, 4, cache),
        build_nested(adapter, "digest", other_text, 4, cache),
        build_nested(adapter, "digest", windows[:3], 4, cache),
        build_nested(adapter, "another", windows, 4, cache),
        build_nested(adapter, "digest", windows, 3, cache),
    ]
    assert len(set(folders)) == len(folders)
