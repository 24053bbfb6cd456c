"""The corpus of a run, read as its model reads it: a text, or items with labels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoprune.cache import Cache
from autoprune.config import Config
from autoprune.data import Corpus, corpus_name, open_corpus
from autoprune.labelled import BUILT_IN, Reader, open_labelled
from autoprune.models.preparation import Preparation
from autoprune.objective import Split
from autoprune.shape import Shape

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.models.load import Loaded


def read_corpus(cfg: DictConfig, loaded: Loaded, shape: Shape, cache: Cache) -> Corpus:
    """What `data` names. For a classifier `window` becomes the tokens of an item: that is the data's to say.

    Where nothing else was asked for, *selection* and *test* windows are as many tokens as of a text.
    """
    if shape.task == "text":
        return open_corpus(corpus_name(str(cfg.data)), loaded.tokenizer, int(cfg.window), cache)
    data = BUILT_IN[shape.task] if cfg.data == "auto" else str(cfg.data)
    corpus = open_labelled(data, reader_of(loaded, shape, int(cfg.window)), cache)
    window = shape.tokens or int(corpus.windows(Split.FITNESS).shape[1])
    for name in ("selection_windows", "test_windows"):
        if cfg[name] == getattr(Config, name):
            cfg[name] = max(int(cfg[name]), cfg[name] * int(cfg.window) // window)
    cfg.window = window
    return corpus


def reader_of(loaded: Loaded, shape: Shape, window: int) -> Reader:
    """How the model reads items, from its config and the settings of its image preparation."""
    config: Any = loaded.model.config
    classes = tuple(str(config.id2label[i]) for i in range(shape.classes))
    if shape.task == "sentences":
        positions = config.max_position_embeddings
        first = (config.pad_token_id or 0) + 1 if config.model_type == "roberta" else 0
        return Reader("sentences", classes, loaded.tokenizer, min(window, positions - first))
    height, width = (config.image_size,) * 2 if isinstance(config.image_size, int) else config.image_size
    prepared = loaded.tokenizer.pixels() if isinstance(loaded.tokenizer, Preparation) else {}
    return Reader("images", classes, pixels=(config.num_channels, height, width), **prepared)
