"""Loading by name, folder or hub id, and one clear line for whatever cannot be loaded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from autoprune.errors import UnsupportedModelError
from autoprune.models import FAMILIES as ADAPTERS
from autoprune.models.load import load_model
from autoprune.zoo import built_in
from tests import tiny

WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in bfloat16."""
    return tiny.save(tiny.llama(blocks=2).bfloat16(), tmp_path_factory.mktemp("good"))


def test_a_folder_is_loaded_in_fp32_and_its_dtype_remembered(good: Path) -> None:
    loaded = load_model(str(good))
    assert loaded.model.dtype is torch.float32 and loaded.dtype is torch.bfloat16
    assert loaded.tokenizer("ab")["input_ids"] and not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())


def test_the_digest_is_that_of_the_weights(good: Path, tmp_path: Path) -> None:
    same, other = tmp_path / "same", tmp_path / "other"
    shutil.copytree(good, same)
    shutil.copytree(good, other)
    weights = load_file(other / "model.safetensors")
    weights[WEIGHT][0, 0] += 1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    first = load_model(str(good)).digest
    assert load_model(str(same)).digest == first != load_model(str(other)).digest


def test_built_in_models_load_by_name() -> None:
    if not built_in():
        pytest.skip("no built-in model is trained yet")
    for name in built_in():
        loaded = load_model(name)
        assert loaded.tokenizer is not None
        assert loaded.model.config.model_type in ADAPTERS


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def _unknown_type(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "zorp"}))


def _half_a_file(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: len(content) // 2])


def _no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def _encoder(folder: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    shutil.rmtree(folder)
    config = T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    T5ForConditionalGeneration(config).save_pretrained(folder)


@pytest.mark.parametrize(
    "spoil", [_no_config, _broken_config, _unknown_type, _half_a_file, _no_weights, _encoder]
)
def test_what_cannot_be_loaded_is_told_in_one_line_naming_what_can(
    good: Path, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    folder = tmp_path / "spoilt"
    shutil.copytree(good, folder)
    spoil(folder)
    with pytest.raises(UnsupportedModelError) as caught:
        load_model(str(folder))
    line = str(caught.value)
    assert line.startswith(f"model={folder} ") and "transformers causal language model" in line
    assert "\n" not in line


@pytest.mark.parametrize("name", ["nowhere", "nobody/nothing", "./nowhere", "/nowhere/at/all"])
def test_a_model_that_does_not_exist_is_refused(name: str) -> None:
    with pytest.raises(UnsupportedModelError, match=f"model={name} .*name a built-in model, the folder of"):
        load_model(name)


def test_missing_weights_are_refused_not_drawn_at_random(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "holes"
    shutil.copytree(good, folder)
    weights = load_file(folder / "model.safetensors")
    del weights[WEIGHT]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"lacks 1 of its tensors, the first is {WEIGHT}"):
        load_model(str(folder))


def test_weights_of_another_size_are_refused(good: Path, tmp_path: Path) -> None:
    folder = tmp_path / "sizes"
    shutil.copytree(good, folder)
    weights = load_file(folder / "model.safetensors")
    weights[WEIGHT] = weights[WEIGHT][:5].clone()
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=f"{WEIGHT} does not have the size"):
        load_model(str(folder))
