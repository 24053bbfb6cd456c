"""Training a small ViT on images of one's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.errors import DataError
from autoprune.models.load import load_model
from autoprune.zoo import classifiers, images
from autoprune.zoo.classifiers import Lesson

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


def _folder(folder: Path, items: int = 120) -> Path:
    """Three colours."""
    rng = np.random.default_rng(0)
    for part in ("train", "valid", "test"):
        labels = rng.integers(0, 3, items)
        pixels = rng.integers(0, 60, (items, 16, 16, 3))
        pixels[np.arange(items), :, :, labels] += 150
        np.savez(folder / f"{part}.npz", images=pixels.astype(np.uint8), labels=labels.astype(np.uint8))
    return folder


def test_a_vit_is_trained_on_a_folder_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "SIZES", images.SIZES | SMALL)
    lesson = Lesson(4, 16, learning_rate=5e-3, shift=1, flip=True, bf16=True)
    figures = images.train_images(str(_folder(tmp_path)), tmp_path / "vit", lambda _: None, lesson)
    loaded = load_model(str(tmp_path / "vit"))
    config = loaded.model.config
    assert (config.image_size, config.patch_size, config.num_channels, config.num_labels) == (16, 2, 3, 3)
    assert figures["accuracy"]["test"] > 0.8
    card = (tmp_path / "vit" / "README.md").read_text()
    assert "autoprune zoo train images-vit --data IMAGES_FOLDER" in card and str(tmp_path) not in card


@pytest.mark.parametrize(
    ("shape", "labels", "told"),
    [
        ((4, 16, 24), [0, 1, 0, 1], "reads squares whose side is a multiple of 8"),
        ((4, 12, 12), [0, 1, 0, 1], "reads squares whose side is a multiple of 8"),
        ((4, 16), [0, 1, 0, 1], "images have the shape"),
        ((4, 16, 16), [0, -1, 0, 1], "labels are int64 values; images-vit reads whole numbers from 0"),
        ((4, 16, 16), ["a", "b", "a", "b"], "labels are <U1 values"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    tmp_path: Path, shape: tuple[int, ...], labels: list[int], told: str
) -> None:
    np.savez(tmp_path / "train.npz", images=np.zeros(shape, np.uint8), labels=np.array(labels))
    with pytest.raises(DataError, match=told):
        images.train_images(str(tmp_path), tmp_path / "to", lambda _: None)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train\.npz is not an \.npz file"):
        images.train_images(str(tmp_path), tmp_path / "to", lambda _: None)


def test_half_of_the_images_are_mirrored() -> None:
    items = torch.arange(200 * 4.0).view(200, 1, 1, 4)
    found = classifiers._flipped(items, True, np.random.default_rng(0))
    mirrored = (found == items.flip(-1)).flatten(1).all(1)
    assert 60 < int(mirrored.sum()) < 140 and torch.equal(found[~mirrored], items[~mirrored])
    assert classifiers._flipped(items, False, np.random.default_rng(0)) is items
