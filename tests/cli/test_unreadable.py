"""What cannot be read or written by the commands on models: one clear line, exit code 2."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from autoprune.cli import main
from tests import tiny


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(tiny.text(20_000))
    return tiny.save(tiny.llama(), tmp_path / "model")


@pytest.fixture
def refused(model: Path, capsys: pytest.CaptureFixture[str]) -> Callable[[], str]:
    def check() -> str:
        words = ["model=model", "data=text.txt", "window=32", "calibration.tokens=512", "latency.mode=off"]
        assert main([*words, "out=run"]) == 2
        said = capsys.readouterr().err
        assert said.startswith("autoprune: ") and said.count("\n") == 1
        assert not Path("run").exists()
        return said

    return check


def test_no_config(model: Path, refused: Callable[[], str]) -> None:
    (model / "config.json").unlink()
    assert "model=model holds no config.json" in refused()


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"model_type": "no-such-thing"}'])
def test_a_config_that_cannot_be_read(model: Path, refused: Callable[[], str], content: str) -> None:
    (model / "config.json").write_text(content)
    assert "model=model cannot be loaded: " in refused()


@pytest.mark.parametrize("content", [b"", b"not tensors", bytes(64)])
def test_weights_that_cannot_be_read(model: Path, refused: Callable[[], str], content: bytes) -> None:
    (model / "model.safetensors").write_bytes(content)
    assert "model=model cannot be loaded: " in refused()


def test_a_folder_in_the_place_of_weights(model: Path, refused: Callable[[], str]) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").mkdir()
    assert "model=model cannot be loaded: " in refused()


def test_no_tokenizer(model: Path, refused: Callable[[], str]) -> None:
    for file in model.glob("tokenizer*"):
        file.unlink()
    assert "has no tokenizer" in refused()


def test_a_tokenizer_without_padding_token_is_all_that_is_needed(model: Path) -> None:
    """All windows are equally long: nothing is ever padded."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    assert settings.get("pad_token") is None
    words = ["model=model", "data=text.txt", "window=32", "calibration.tokens=512", "latency.mode=off"]
    small = ["tokens=2000", "search=random", "selection_windows=4", "test_windows=4", "uniform=[0.5]"]
    assert (
        main([*words, *small, "search.windows=2", "search.batch=8", "finalists=4", "out=run", "quiet=true"])
        == 0
    )
    assert Path("run/best/tokenizer.json").is_file()
