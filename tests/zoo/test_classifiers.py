"""Training a built-in classifier, in small; passages and their parts; the committed models as their cards say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.data import as_tensor
from autoprune.models.load import load_model
from autoprune.objective import Split
from autoprune.zoo import classifiers, digits, docs, folder_of, passages
from autoprune.zoo.classifiers import Lesson, train_classifier

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small architectures and few documents."""
    monkeypatch.setattr(classifiers, "DIGITS", classifiers.DIGITS | SMALL)
    monkeypatch.setattr(classifiers, "DOCS", classifiers.DOCS | SMALL | {"vocab_size": 300})
    words = {part: f"{part} has its own words, " * 8 for part in passages.PARTS}
    texts = [docs.Document(f"{p}:{i}", f"{words[p]} {i}") for p in passages.PARTS[1:] for i in range(12)]
    monkeypatch.setattr(docs, "read_split", lambda split: texts)
    monkeypatch.setattr(docs, "text", lambda split: "\n\n".join(d.text for d in texts))


@pytest.mark.parametrize(("name", "passes"), [("digits-vit", 3), ("docs-bert", 30)])
def test_a_classifier_is_trained_saved_and_described(
    few: None, name: str, passes: int, tmp_path: Path
) -> None:
    said: list[str] = []
    figures = train_classifier(name, tmp_path / "a", said.append, Lesson(passes, 32, learning_rate=5e-3))
    loaded = load_model(str(tmp_path / "a"))
    assert loaded.model.config.num_hidden_layers == 2 and loaded.tokenizer is not None
    assert type(loaded.model).__name__.endswith("Classification")
    card = (tmp_path / "a" / "README.md").read_text()
    assert f"{figures['parameters']:,} parameters" in card and f"autoprune zoo train {name}" in card
    assert f"{figures['accuracy']['test']:.4f}" in card
    assert figures["accuracy"]["test"] > 1.5 / loaded.model.config.num_labels
    assert sum(s.startswith("pass") for s in said) == passes


def test_passages_are_of_their_part_and_balanced(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [docs.Document("topic:if", "word " * 400), docs.Document("numpy:a.py", "array " * 9000)]
    monkeypatch.setattr(docs, "read_split", lambda split: texts)
    found = passages.read(Split.FITNESS)
    assert {part for text, part in found if "word" in text} == {"language"}
    counts = {part: sum(p == part for _, p in found) for part in passages.PARTS}
    assert counts["numpy"] == passages.HELD and 0 < counts["language"] < passages.HELD
    assert all(len(text) <= passages.MOST for text, _ in found)


def test_moved_images_are_the_same_images() -> None:
    import numpy as np

    images = torch.from_numpy(digits.read()[0][:50].astype(np.float32))[:, None]
    moved = classifiers._moved(images, 1, np.random.default_rng(0))
    assert not torch.equal(moved, images) and torch.equal(moved.sum((1, 2, 3)), images.sum((1, 2, 3)))
    assert torch.equal(classifiers._moved(images, 0, np.random.default_rng(0)), images)


def test_the_committed_digits_vit_is_as_good_as_its_card_says(tmp_path: Path) -> None:
    from autoprune.cache import Cache
    from autoprune.labelled import Reader, open_labelled

    model: Any = load_model("digits-vit").model
    corpus = open_labelled("digits", Reader("images", tuple("0123456789"), pixels=(1, 8, 8)), Cache(tmp_path))
    labels = corpus.labels(Split.TEST)
    assert labels is not None
    with torch.inference_mode():
        hits = model(as_tensor(corpus.windows(Split.TEST))).logits.argmax(-1) == torch.from_numpy(labels)
    assert (
        f"| test | {len(labels)} | {hits.float().mean():.4f} |"
        in (folder_of("digits-vit") / "README.md").read_text()
    )


def test_committed_classifiers_are_small() -> None:
    for name in classifiers.LESSONS:
        assert sum(f.stat().st_size for f in folder_of(name).iterdir()) < 2_000_000
