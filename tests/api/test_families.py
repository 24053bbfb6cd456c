"""Families other than Llama go the whole way: search, latency table, front, checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import autoprune
from autoprune.front import Front
from autoprune.hardware import fitting, measuring
from tests import tiny
from tests.families import FAMILIES


@pytest.fixture(params=["qwen3-windows", "gpt2-tied", "qwen3_moe-normed"], scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def front(name: str, given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Front:
    # the times of so small a model are noise on a busy machine: that they are taken is what is looked at
    for module in (fitting, measuring):
        monkeypatch.setattr(module, "relative_line", lambda *_: (0.0, 1.0))
    family, _, variant = name.partition("-")
    model = FAMILIES[family].make(variant, vocab_size=tiny.VOCABULARY)
    folder = tiny.save(model, tmp_path / "model")
    return given.search(tmp_path / "run", model=folder, tokens=4000)


def test_a_search_ends_with_a_front_and_a_checkpoint(name: str, front: Front, tmp_path: Path) -> None:
    frame = front.frame()
    found = frame[frame["name"] == "front"]
    assert len(found) and found[["kl_test", "prefill_ms", "decode_ms"]].notna().all(axis=None)
    dense = frame[frame["name"] == "dense"].iloc[0]
    assert abs(dense["kl_test"]) < 1e-5 and dense["params_ratio"] == 1
    best = list((front.folder / "best").rglob("model.safetensors"))
    assert best, "no checkpoint was exported"
    model = autoprune.load(best[0].parent)
    assert model.config.model_type.removeprefix("autoprune_") == name.split("-")[0]
