"""Trains the built-in classifiers: `autoprune zoo train digits-vit` and `autoprune zoo train docs-bert`."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.data import Corpus, as_tensor
from autoprune.labelled import Reader, open_labelled, padded
from autoprune.models.preparation import FILE
from autoprune.objective import Split
from autoprune.zoo import docs, passages

Say = Callable[[str], None]
Batch = tuple[Tensor, Tensor]  # what the model reads, and labels


@dataclass(frozen=True)
class Lesson:
    """Everything that decides the trained weights, besides data and library versions."""

    passes: int
    batch: int = 64
    learning_rate: float = 2e-3
    warmup: float = 0.05  # share of the steps
    weight_decay: float = 0.05
    shift: int = 0  # pixels that an image is moved by, at most
    flip: bool = False  # every second image mirrored, left to right
    bf16: bool = False  # products in bf16 (autocast), weights in fp32
    seed: int = 0


@dataclass(frozen=True)
class About:
    """What a card says besides figures."""

    name: str
    task: str
    what: str
    data: str
    command: str


@dataclass(frozen=True)
class Untrained:
    """A model with its data: items and labels of *train*, *selection* and *test*."""

    model: Any
    parts: Mapping[Split, Batch]
    tokenizer: Any = None  # None for images


DIGITS: dict[str, Any] = {
    "image_size": 8,
    "patch_size": 2,
    "num_channels": 1,
    "hidden_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "initializer_range": 0.1,  # the usual 0.02 is for wider models
}
DOCS: dict[str, Any] = {
    "vocab_size": 2048,
    "hidden_size": 96,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "initializer_range": 0.07,
    "max_position_embeddings": 64,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
LESSONS = {
    "digits-vit": Lesson(passes=100, shift=1),
    "docs-bert": Lesson(passes=4, learning_rate=1.5e-3),
}
SPECIAL = ("[CLS]", "[PAD]", "[SEP]")


def train_classifier(name: str, to: Path, say: Say = print, lesson: Lesson | None = None) -> dict[str, Any]:
    """Train a built-in classifier into `to` with its card; returns the card's figures. One thread, fp32."""
    lesson = lesson or LESSONS[name]
    torch.manual_seed(lesson.seed)
    made = _digits() if name == "digits-vit" else _docs(say)
    return trained(made, ABOUT[name], to, lesson, say)


def trained(made: Untrained, about: About, to: Path, lesson: Lesson, say: Say) -> dict[str, Any]:
    """Train, save into `to` and write the card; returns the card's figures. One thread."""
    torch.set_num_threads(1)
    model, parts = made.model, made.parts
    best, at = _fit(model, parts, lesson, say)
    model.load_state_dict(best)
    if about.name == "docs-bert":
        model = model.to(torch.bfloat16)
    to.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(to)
    if made.tokenizer is None:
        (to / FILE).write_text(json.dumps(_preparation(model.config.image_size), indent=1) + "\n")
    else:
        made.tokenizer.save_pretrained(to)
    model = model.float().eval()
    figures = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "best_pass": at,
        "items": {s.value: len(labels) for s, (_, labels) in parts.items()},
        "accuracy": {s.value: _accuracy(model, parts[s]) for s in (Split.SELECTION, Split.TEST)},
        "lesson": asdict(lesson),
    }
    (to / "README.md").write_text(_card(about, model.config, figures), encoding="utf-8")
    say(f"{to}: test accuracy {figures['accuracy']['test']:.4f}")
    return figures


def _preparation(size: int) -> dict[str, Any]:
    return {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": size, "width": size},
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "rescale_factor": 1 / 255,
        "image_mean": [0.5],
        "image_std": [0.5],
    }


def _digits() -> Untrained:
    from transformers import ViTConfig, ViTForImageClassification

    reader = Reader("images", tuple(map(str, range(10))), pixels=(1, 8, 8))
    corpus = open_labelled("digits", reader, Cache())
    model = ViTForImageClassification(ViTConfig(**DIGITS, **named(reader.classes)))
    return Untrained(model, learned_from(corpus))


def learned_from(corpus: Corpus) -> dict[Split, Batch]:
    """Items and labels of the splits that training reads."""
    parts = {}
    for split in (Split.TRAIN, Split.SELECTION, Split.TEST):
        labels = corpus.labels(split)
        assert labels is not None
        parts[split] = as_tensor(corpus.windows(split)), torch.from_numpy(labels)
    return parts


def _docs(say: Say) -> Untrained:
    from transformers import BertConfig, BertForSequenceClassification

    say("reading the corpus")
    tokenizer = _tokenizer(docs.text(Split.TRAIN))
    reader = Reader("sentences", passages.PARTS, tokenizer, DOCS["max_position_embeddings"])
    parts = {}
    for split in (Split.TRAIN, Split.SELECTION, Split.TEST):
        found = passages.read(split)
        labels = [passages.PARTS.index(part) for _, part in found]
        ids, known = padded([text for text, _ in found], labels, reader)
        parts[split] = as_tensor(ids), torch.from_numpy(known)
    model = BertForSequenceClassification(BertConfig(**DOCS, **named(passages.PARTS)))
    return Untrained(model, parts, tokenizer)


def named(classes: tuple[str, ...]) -> dict[str, Any]:
    """A config's words for its classes."""
    return {"id2label": dict(enumerate(classes)), "label2id": {c: i for i, c in enumerate(classes)}}


def _tokenizer(corpus: str) -> Any:
    """Byte-level BPE on the train split only, with a [CLS] token first and a [SEP] token last."""
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    from autoprune.zoo.train import train_tokenizer

    backend = train_tokenizer(corpus, DOCS["vocab_size"], SPECIAL)
    pairs = [(t, backend.token_to_id(t)) for t in ("[CLS]", "[SEP]")]
    backend.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pairs)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        cls_token="[CLS]",
        pad_token="[PAD]",
        sep_token="[SEP]",
        model_max_length=DOCS["max_position_embeddings"],
    )


def _fit(model: Any, parts: Mapping[Split, Batch], lesson: Lesson, say: Say) -> tuple[dict[str, Tensor], int]:
    """One-cycle AdamW; returns the state of the highest *selection* accuracy and its pass."""
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": lesson.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lesson.learning_rate)
    items, labels = parts[Split.TRAIN]
    rng, step = np.random.default_rng(lesson.seed), 0
    steps = lesson.passes * -(-len(labels) // lesson.batch)
    best: dict[str, Tensor] = {}
    highest, at = -1.0, 0
    for number in range(1, lesson.passes + 1):
        model.train()
        for rows in torch.from_numpy(rng.permutation(len(labels))).split(lesson.batch):
            step += 1
            for group in optimizer.param_groups:
                group["lr"] = lesson.learning_rate * _schedule(step / steps, lesson.warmup)
            batch = _flipped(_moved(items[rows], lesson.shift, rng), lesson.flip, rng)
            with torch.autocast("cpu", torch.bfloat16, enabled=lesson.bf16):
                logits = _logits(model, batch)
            loss = torch.nn.functional.cross_entropy(logits.float(), labels[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        held = _accuracy(model.eval(), parts[Split.SELECTION])
        if held >= highest:
            best, highest, at = copy.deepcopy(model.state_dict()), held, number
        say(f"pass {number}/{lesson.passes}  train {loss.item():.3f}  selection accuracy {held:.4f}")
    return best, at


def _schedule(progress: float, warmup: float) -> float:
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


def _moved(items: Tensor, shift: int, rng: np.random.Generator) -> Tensor:
    """Images moved by some pixels, what leaves on one side coming in on the other (borders are empty)."""
    if not shift:
        return items
    moves = rng.integers(-shift, shift + 1, (len(items), 2))
    return torch.stack(
        [torch.roll(image, (int(y), int(x)), (1, 2)) for image, (y, x) in zip(items, moves, strict=True)]
    )


def _flipped(items: Tensor, flip: bool, rng: np.random.Generator) -> Tensor:
    """Images mirrored left to right, each with a chance of a half."""
    if not flip:
        return items
    chosen = torch.from_numpy(rng.random(len(items)) < 0.5)
    return torch.where(chosen[:, None, None, None], items.flip(-1), items)


def _logits(model: Any, items: Tensor) -> Tensor:
    if items.is_floating_point():
        return model(pixel_values=items).logits  # type: ignore[no-any-return]
    known = items >= 0
    ids = items.masked_fill(~known, model.config.pad_token_id)
    return model(input_ids=ids, attention_mask=known.long()).logits  # type: ignore[no-any-return]


@torch.no_grad()
def _accuracy(model: Any, part: Batch) -> float:
    items, labels = part
    hits = [
        (_logits(model, i).argmax(-1) == k).sum()
        for i, k in zip(items.split(64), labels.split(64), strict=True)
    ]
    return float(sum(hits) / len(labels))


def _card(about: About, config: Any, figures: Mapping[str, Any]) -> str:
    sizes = f"{config.num_hidden_layers} blocks, hidden size {config.hidden_size}, {config.num_attention_heads} heads, "
    sizes += f"FFN width {config.intermediate_size}"
    lesson, items, accuracy = figures["lesson"], figures["items"], figures["accuracy"]
    return f"""---
library_name: transformers
license: apache-2.0
pipeline_tag: {about.task}
---
# {about.name}

{about.what} {sizes}; {figures["parameters"]:,} parameters.

Trained from scratch on the *train* split of {about.data}
({items["train"]:,} items, {lesson["passes"]} passes, AdamW, one
CPU thread, seed {lesson["seed"]}); the weights of the highest *selection* accuracy (pass {figures["best_pass"]}).

| split | items | accuracy |
|---|---|---|
| selection | {items["selection"]:,} | {accuracy["selection"]:.4f} |
| test | {items["test"]:,} | {accuracy["test"]:.4f} |

Command: `{about.command}`
"""


ABOUT = {
    "digits-vit": About(
        "digits-vit",
        "image-classification",
        "Which digit an image of 8 x 8 pixels shows. ViT with patches of 2 x 2 pixels:",
        "scikit-learn's handwritten digits (`data=digits`)",
        "autoprune zoo train digits-vit",
    ),
    "docs-bert": About(
        "docs-bert",
        "text-classification",
        "Which part of the documentation a passage is from: " + ", ".join(passages.PARTS) + ". BERT:",
        "passages of the documentation that installations carry (`data=docs`, `autoprune/zoo/passages.py`)",
        "autoprune zoo train docs-bert",
    ),
}
