"""A small ViT for labelled images of one's own: `autoprune zoo train images-vit --data FOLDER --to DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from autoprune.cache import Cache
from autoprune.errors import DataError
from autoprune.labelled import Reader, open_labelled
from autoprune.zoo.classifiers import About, Lesson, Say, Untrained, learned_from, named, trained

NAME = "images-vit"
ACROSS = 8  # patches along each side
SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 192,
    "initializer_range": 0.07,
    "attn_implementation": "eager",  # the fused kernel's backward is slower on a CPU
}
LESSON = Lesson(passes=20, learning_rate=1.5e-3, shift=2, flip=True, bf16=True)


def train_images(data: str, to: Path, say: Say = print, lesson: Lesson = LESSON) -> dict[str, Any]:
    """Train a ViT on `data` (a folder of .npz files or one such file) into `to`; returns its card's figures.

    Patches are an eighth of a side. Raises DataError for images that are not square or whose side is no multiple of
    8, for labels that are not whole numbers from 0, and what `open_labelled` raises.
    """
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(lesson.seed)
    reader = reader_of(data)
    channels, side, _ = reader.pixels
    shape: dict[str, Any] = {"image_size": side, "patch_size": side // ACROSS, "num_channels": channels}
    parts = learned_from(open_labelled(data, reader, Cache()))
    made = Untrained(ViTForImageClassification(ViTConfig(**shape, **SIZES, **named(reader.classes))), parts)
    return trained(made, _about(reader), to, lesson, say)


def reader_of(data: str) -> Reader:
    """How the images that `data` holds are read: their size, and as many classes as there are labels."""
    path = Path(data).expanduser()
    file = path / "train.npz" if path.is_dir() else path
    try:
        with np.load(file, allow_pickle=False) as held:
            found, labels = held["images"].shape, held["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"data={file} is not an .npz file with arrays images and labels: {error}") from error
    sides, channels = _sides(found)
    if len(set(sides)) > 1 or sides[0] % ACROSS:
        raise DataError(
            f"data={file} has images of {'x'.join(map(str, found))}; {NAME} reads squares whose side is a multiple"
            f" of {ACROSS}"
        )
    if not labels.size or not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise DataError(f"data={file}: labels are {labels.dtype} values; {NAME} reads whole numbers from 0")
    classes = tuple(map(str, range(int(labels.max()) + 1)))
    return Reader("images", classes, pixels=(channels, sides[0], sides[0]))


def _sides(found: tuple[int, ...]) -> tuple[tuple[int, int], int]:
    """Height and width, and channels, of [N, H, W], [N, H, W, C] or [N, C, H, W]."""
    if len(found) == 3:
        return (found[1], found[2]), 1
    if len(found) == 4 and found[3] < found[1]:
        return (found[1], found[2]), found[3]
    if len(found) == 4:
        return (found[2], found[3]), found[1]
    raise DataError(f"images have the shape {list(found)}; allowed: [N, H, W], [N, H, W, C] and [N, C, H, W]")


def _about(reader: Reader) -> About:
    channels, side, _ = reader.pixels
    return About(
        NAME,
        "image-classification",
        f"Which of {len(reader.classes)} classes an image of {side} x {side} pixels ({channels} channels) shows. "
        f"ViT with patches of {side // ACROSS} x {side // ACROSS} pixels:",
        "a folder of images",
        f"autoprune zoo train {NAME} --data IMAGES_FOLDER --to DIR",
    )
