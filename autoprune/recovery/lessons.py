"""What recovery reads: windows of the *train* split, in an order that seed and step alone decide."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.cache import Cache
from autoprune.data import SEARCHED, Corpus
from autoprune.errors import DataError, SettingError
from autoprune.objective import Split

DOCS_CHARACTERS = 12_000_000  # of the built-in corpus, in whole documents: some 4 M tokens


@dataclass(frozen=True)
class Lessons:
    """Windows [N, T] to train on; raises SettingError for any split but *train*."""

    split: Split
    windows: NDArray[np.int32]

    def __post_init__(self) -> None:
        if self.split is not Split.TRAIN:
            raise SettingError(f"recovery trains on split train only, not on {self.split.value}")

    def check(self, batch: int) -> None:
        """Raise DataError when the split does not hold one batch."""
        if len(self.windows) < batch:
            raise DataError(
                f"data= is too short to recover on: split train has {len(self.windows)} windows and recovery.batch="
                f"{batch} needs as many; give more text or a smaller recovery.batch"
            )

    def batch(self, step: int, size: int, seed: int) -> Tensor:
        """Token ids [size, T] of a step: windows in a new order every pass, none twice in a pass."""
        count = len(self.windows)
        places = range(step * size, (step + 1) * size)
        rows = [int(_order(seed, at // count, count)[at % count]) for at in places]
        return torch.from_numpy(self.windows[rows].astype(np.int64))


@lru_cache(maxsize=2)
def _order(seed: int, turn: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, turn]).permutation(count)


def open_lessons(corpus: Corpus, data: str, tokenizer: Any, window: int, cache: Cache) -> Lessons:
    """The train windows of `data`; those of the built-in corpus are cut when they are first asked for."""
    if data != "docs":
        return Lessons(Split.TRAIN, corpus.windows(Split.TRAIN))
    inputs = {"docs": corpus.digest, "characters": DOCS_CHARACTERS, "window": window, "format": 1}

    def build(folder: Path) -> None:
        tokens = tokenizer(_docs_text(), add_special_tokens=False, verbose=False)["input_ids"]
        windows = np.asarray(tokens[: len(tokens) // window * window], dtype=np.int32).reshape(-1, window)
        np.save(folder / "train.npy", _unseen(windows, corpus))

    folder = cache.folder("lessons", inputs, build)
    return Lessons(Split.TRAIN, np.load(folder / "train.npy", mmap_mode="r"))


def _docs_text() -> str:
    """Documents of the built-in corpus's train split in a fixed random order, up to `DOCS_CHARACTERS`."""
    from autoprune.zoo import docs

    documents = docs.read_split(Split.TRAIN)
    texts: list[str] = []
    for index in np.random.default_rng(0).permutation(len(documents)):
        if sum(map(len, texts)) >= DOCS_CHARACTERS:
            break
        texts.append(documents[index].text)
    return "\n\n".join(texts)


def _unseen(windows: NDArray[np.int32], corpus: Corpus) -> NDArray[np.int32]:
    """Without the windows that a held-out split has too."""
    held = {row.tobytes() for split in SEARCHED for row in corpus.windows(split)}
    fresh: NDArray[np.int32] = windows[np.array([row.tobytes() not in held for row in windows], dtype=bool)]
    return fresh
