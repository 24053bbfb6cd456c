"""Checkpoints are whole or absent, and load as what they are."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from autoprune.errors import ExportError, SettingError, UnsupportedModelError
from autoprune.export import checkpoint
from autoprune.export.assemble import assemble
from autoprune.export.checkpoint import load_checkpoint, register, save_checkpoint
from autoprune.models import adapter_for
from autoprune.space import Plan

MIXED = Plan.of([(0, 48), (2, 20), (1, 0), (2, 48)])
EQUAL = Plan.of([(1, 20)] * 4)


def saved(tiny: SimpleNamespace, to: Path, plan: Plan, **settings: object) -> object:
    model = tiny.dense(**settings)
    small = assemble(adapter_for(model), plan, tiny.weights(model), torch.float32)
    save_checkpoint(small, None, to, "# card\n", plan)
    return small


@pytest.mark.parametrize("plan", [MIXED, EQUAL])
@pytest.mark.parametrize("tied", [True, False])
def test_loads_as_it_was_saved(
    tiny: SimpleNamespace, tmp_path: Path, ids: Tensor, plan: Plan, tied: bool
) -> None:
    small = saved(tiny, tmp_path / "out", plan, tie_word_embeddings=tied)
    again = load_checkpoint(tmp_path / "out")
    assert type(again) is type(small) and not again.training
    assert torch.equal(tiny.logits(again, ids), tiny.logits(small, ids))
    assert load_checkpoint(tmp_path / "out", torch.bfloat16).dtype == torch.bfloat16


def test_files_of_a_mixed_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    saved(tiny, tmp_path / "out", MIXED)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert {"model.safetensors", "config.json", "modeling_autoprune_llama.py", "README.md"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "autoprune_llama"
    assert config["auto_map"] == {
        "AutoConfig": "modeling_autoprune_llama.AutopruneLlamaConfig",
        "AutoModelForCausalLM": "modeling_autoprune_llama.AutopruneLlamaForCausalLM",
    }
    assert Plan.from_json((tmp_path / "out/autoprune_plan.json").read_text()) == MIXED
    assert (tmp_path / "out/README.md").read_text() == "# card\n"


def test_equal_blocks_make_a_plain_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    saved(tiny, tmp_path / "out", EQUAL)
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["model_type"] == "llama" and config["architectures"] == ["LlamaForCausalLM"]
    assert not {"auto_map", "per_layer_config", "layer_types"} & set(config)
    assert config["num_key_value_heads"] == 1 and config["head_dim"] == 8
    assert not list((tmp_path / "out").glob("*.py"))
    assert type(LlamaForCausalLM.from_pretrained(tmp_path / "out")) is LlamaForCausalLM


def test_tokenizer_travels_along(tiny: SimpleNamespace, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, "a")))
    model = tiny.dense()
    small = assemble(adapter_for(model), EQUAL, tiny.weights(model), torch.float32)
    save_checkpoint(small, tokenizer, tmp_path / "out", "", EQUAL)
    assert PreTrainedTokenizerFast.from_pretrained(tmp_path / "out").get_vocab() == {"a": 0, "b": 1}


def test_loading_twice_registers_once() -> None:
    register()
    register()


def test_sampling_settings_that_transformers_refuses_to_save(tiny: SimpleNamespace, tmp_path: Path) -> None:
    model = tiny.dense()
    model.generation_config.temperature = 0.6  # without do_sample, as published models have it
    small = assemble(adapter_for(model), MIXED, tiny.weights(model), torch.float32)
    save_checkpoint(small, None, tmp_path / "out", "", MIXED)
    assert model.generation_config.temperature == 0.6
    model.generation_config.do_sample = True
    assert (
        assemble(adapter_for(model), MIXED, tiny.weights(model), torch.float32).generation_config.temperature
        == 0.6
    )


def test_destination_must_be_new_or_empty(tiny: SimpleNamespace, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/kept.txt").write_text("mine")
    with pytest.raises(SettingError, match=r"--to .*full is not empty; name a folder that is new or empty"):
        saved(tiny, tmp_path / "full", MIXED)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["kept.txt"]
    with pytest.raises(SettingError, match=r"--to .*kept.txt is a file"):
        saved(tiny, tmp_path / "full/kept.txt", MIXED)
    with pytest.raises(SettingError, match=r"--to .* cannot be written"):
        saved(tiny, tmp_path / "full/kept.txt/out", MIXED)
    (tmp_path / "empty").mkdir()
    saved(tiny, tmp_path / "empty", MIXED)
    assert (tmp_path / "empty/config.json").is_file()


def test_a_folder_one_may_not_write_is_refused(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint.os, "access", lambda *_: False)  # root may write everywhere
    with pytest.raises(SettingError, match=r"--to .*out cannot be written: permission denied"):
        saved(tiny, tmp_path / "out", MIXED)


@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
def test_a_failure_on_the_way_leaves_nothing(
    tiny: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(Plan, "to_json", fail)  # after the weights are written
    with pytest.raises(ExportError if isinstance(error, OSError) else KeyboardInterrupt):
        saved(tiny, tmp_path / "out", MIXED)
    assert not list(tmp_path.iterdir())


def test_loading_what_is_no_checkpoint(tiny: SimpleNamespace, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="it has no config.json"):
        load_checkpoint(tmp_path)
    saved(tiny, tmp_path / "out", MIXED)
    (tmp_path / "out/model.safetensors").write_bytes(b"half")
    with pytest.raises(UnsupportedModelError, match="cannot be loaded"):
        load_checkpoint(tmp_path / "out")
