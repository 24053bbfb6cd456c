"""Training a built-in model, in small: the weights of lowest loss, a card, and a folder that loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune import api
from autoprune.errors import SettingError
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.zoo import built_in, docs, folder_of, train
from autoprune.zoo.train import Recipe
from tests import tiny

RECIPE = Recipe(
    tokens=4096,
    step_tokens=128,
    window=32,
    evaluate_every=8,
    selection_windows=4,
    vocabulary=300,
    learning_rate=1e-2,
)
PIECES = {Split.TRAIN: (0, 40_000), Split.SELECTION: (40_000, 44_000), Split.TEST: (44_000, 48_000)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small architecture and a small corpus."""
    sizes = {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"num_key_value_heads": 1, "head_dim": 12}
    routed = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
    for name, own in train.ARCHITECTURES.items():
        less = {k: v for k, v in (sizes | routed).items() if k in own}
        monkeypatch.setitem(train.ARCHITECTURES, name, own | less)
    monkeypatch.setattr(docs, "text", lambda split: tiny.text()[slice(*PIECES[split])])


@pytest.mark.parametrize("name", train.ARCHITECTURES)
def test_a_model_is_trained_saved_and_described(tmp_path: Path, name: str) -> None:
    said: list[str] = []
    train.train_named(name, tmp_path / "a", RECIPE, said.append)
    loaded = load_model(str(tmp_path / "a"))
    assert loaded.dtype is torch.bfloat16 and loaded.model.config.num_hidden_layers == 2
    assert loaded.tokenizer.decode(loaded.tokenizer("an object")["input_ids"]) == "an object"
    card = (tmp_path / "a" / "README.md").read_text()
    parameters = sum(p.numel() for p in loaded.model.parameters())
    assert f"{parameters:,} parameters" in card and f"autoprune zoo train {name}" in card
    losses = [float(s.split("selection ")[1].split()[0]) for s in said if s.startswith("step")]
    assert len(losses) == 4 and losses[-1] < losses[0]


def random_tokens(count: int) -> Any:
    return tiny.token_ids((count,), vocabulary=300).numpy().astype("uint16")


def test_the_weights_of_lowest_selection_loss_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    losses, kept, tokens = [3.0, 1.0, 2.0, 4.0], [], random_tokens(4000)
    monkeypatch.setattr(train, "mean_nll", lambda *args: losses.pop(0))
    model = train.build("docs-llama", RECIPE)
    best, loss, step = train.fit(
        model, tokens, tokens[:320].reshape(-1, 32), RECIPE, lambda line: None, kept.append
    )
    assert (loss, step) == (1.0, 16) and len(kept) == 2 and kept[1] is best
    assert any(not torch.equal(best[name], tensor) for name, tensor in model.state_dict().items())
    assert any(not torch.equal(kept[0][name], kept[1][name]) for name in best)


def test_windows_never_repeat_within_a_pass() -> None:
    tokens = np.arange(4001, dtype=np.uint16)
    batches = list(train._batches(tokens, RECIPE, 20))
    assert [tuple(b.shape) for b in batches] == [(4, 33)] * 20
    assert all((b[:, 1:] == b[:, :-1] + 1).all() for b in batches)
    starts = torch.cat([b[:, 0] for b in batches[:10]]).tolist()
    assert len(set(starts)) == len(starts) and starts != sorted(starts)
    again = list(train._batches(tokens, RECIPE, 20))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_the_loss_is_the_models_own() -> None:
    model, windows = tiny.llama(noise=0.2), tiny.token_ids((40, 9)).numpy().astype("uint16")
    ids = torch.from_numpy(windows.astype("int64"))
    assert train.mean_nll(model, windows) == pytest.approx(
        float(model(input_ids=ids, labels=ids).loss), rel=1e-5
    )


def test_a_name_that_is_not_built_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        SettingError, match="zoo: 'docs-lama' is not a built-in model; did you mean 'docs-llama'"
    ):
        api.zoo_train("docs-lama")
    with pytest.raises(SettingError, match="zoo: images-vit needs --data FOLDER .* and --to DIR"):
        api.zoo_train("images-vit", tmp_path)
    with pytest.raises(SettingError, match="zoo: digits-vit is trained on data of its own"):
        api.zoo_train("digits-vit", tmp_path, str(tmp_path))


def test_built_in_models_are_the_folders_that_hold_one() -> None:
    assert all((folder_of(name) / "config.json").is_file() for name in built_in())
