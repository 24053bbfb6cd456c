"""Items with labels as windows: five disjoint splits, masks in the ids, one line for whatever is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.cache import Cache
from autoprune.data import Corpus
from autoprune.errors import DataError
from autoprune.labelled import PADDING, Reader, open_labelled
from autoprune.objective import Split
from tests import tiny

CLASSES = ("bad", "good", "fair")
SEARCHED = (Split.CALIBRATION, Split.FITNESS, Split.SELECTION, Split.TEST)


def reader(**settings: Any) -> Reader:
    return Reader("sentences", CLASSES, tiny.tokenizer(), **settings)


def images(**settings: Any) -> Reader:
    return Reader("images", CLASSES, pixels=(3, 4, 5), **settings)


def sentences(folder: Path, count: int = 60) -> Path:
    for at, part in enumerate(("train", "valid", "test")):
        lines = [f"sentence {part} {i}{'!' * (i % 7)}\t{(i + at) % 3}" for i in range(count)]
        (folder / f"{part}.tsv").write_text("sentence\tlabel\n" + "\n".join(lines) + "\n")
    return folder


def every(corpus: Corpus) -> list[tuple[bytes, int]]:
    found = []
    for split in Split:
        labels = corpus.labels(split)
        assert labels is not None and len(labels) == corpus.count(split)
        found += [(row.tobytes(), int(k)) for row, k in zip(corpus.windows(split), labels, strict=True)]
    return found


def test_sentences_keep_their_labels_and_their_mask(tmp_path: Path) -> None:
    corpus = open_labelled(str(sentences(tmp_path)), reader(), Cache(tmp_path / "cache"))
    ids, labels = corpus.windows(Split.TEST), corpus.labels(Split.TEST)
    assert labels is not None and len(ids) == 60
    for row, label in zip(ids, labels, strict=True):
        text = bytes(row[row != PADDING].astype(np.uint8).tolist())
        assert (row == PADDING).sum() == ids.shape[1] - len(text)
        number = int(tiny.tokenizer().decode(row[row >= 0]).strip("!").rsplit(" ", 1)[-1])
        assert label == (number + 2) % 3
    assert {s: corpus.count(s) for s in Split} == {
        Split.TRAIN: 42,
        Split.CALIBRATION: 6,
        Split.FITNESS: 12,
        Split.SELECTION: 60,
        Split.TEST: 60,
    }


def test_one_file_is_shuffled_and_cut(tmp_path: Path) -> None:
    file = tmp_path / "all.jsonl"
    lines = [json.dumps({"text": f"number {i}", "label": CLASSES[i // 40]}) for i in range(120)]
    file.write_text("\n".join(lines))
    corpus = open_labelled(str(file), reader(), Cache(tmp_path / "cache"))
    assert len(set(every(corpus))) == 120 and corpus.repeats == 0
    assert all(set(corpus.labels(s).tolist()) == {0, 1, 2} for s in SEARCHED)  # type: ignore[union-attr]


def test_what_two_splits_have_stays_in_the_stricter(tmp_path: Path) -> None:
    folder = sentences(tmp_path)
    with (folder / "train.tsv").open("a") as file:
        file.write("sentence test 4!!!!\t1\nsentence valid 3!!!\t0\n")
    corpus = open_labelled(str(folder), reader(), Cache(tmp_path / "cache"))
    assert corpus.repeats == 2 and len({row for row, _ in every(corpus)}) == 180


def test_long_sentences_are_cut(tmp_path: Path) -> None:
    corpus = open_labelled(str(sentences(tmp_path)), reader(longest=18), Cache(tmp_path / "cache"))
    assert corpus.windows(Split.FITNESS).shape[1] == 18


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_bytes_are_normed_and_floats_are_not(tmp_path: Path, layout: str) -> None:
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 256, (30, 3, 4, 5), dtype=np.uint8)
    stored = whole if layout == "channels first" else whole.transpose(0, 2, 3, 1)
    np.savez(tmp_path / "bytes.npz", images=stored, labels=np.arange(30) % 3)
    np.savez(tmp_path / "floats.npz", images=whole.astype(np.float32), labels=np.arange(30) % 3)
    mean, std = (0.1, 0.2, 0.3), (0.5, 1.0, 2.0)
    wanted = (whole / 255 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    for name, expected in (("bytes", wanted), ("floats", whole)):
        corpus = open_labelled(
            str(tmp_path / f"{name}.npz"), images(mean=mean, std=std), Cache(tmp_path / "cache")
        )
        found = {row: k for row, k in every(corpus)}
        assert len(found) == 30
        for image, label in zip(expected.astype(np.float32), np.arange(30) % 3, strict=True):
            close = [
                k
                for row, k in found.items()
                if np.allclose(np.frombuffer(row, np.float32), image.ravel(), atol=1e-5)
            ]
            assert close == [label]


def test_labels_and_windows_are_of_one_order(tmp_path: Path) -> None:
    """Red when labels are shuffled otherwise than items."""
    values = np.arange(50, dtype=np.float32)[:, None, None, None] * np.ones((1, 3, 4, 5), np.float32)
    np.savez(tmp_path / "all.npz", images=values, labels=np.arange(50) % 3)
    corpus = open_labelled(str(tmp_path / "all.npz"), images(), Cache(tmp_path / "cache"))
    for split in SEARCHED:
        assert (corpus.windows(split)[:, 0, 0, 0] % 3 == corpus.labels(split)).all()


def bad(folder: Path, name: str) -> tuple[str, Reader]:
    """Something wrong, and who reads it."""
    file = folder / "bad.tsv"
    file.write_text("\n".join(["fine\t1"] * 3 + ["wrong\t7"]))
    if name == "columns":
        file.write_text("one\ttwo\t0\n")
    if name == "json":
        (folder / "bad.jsonl").write_text('{"text": "no label"}\n')
        return str(folder / "bad.jsonl"), reader()
    if name == "folder":
        (folder / "train.tsv").write_text("fine\t1\n")
        return str(folder), reader()
    if name == "size":
        np.savez(folder / "x.npz", images=np.zeros((4, 9, 9), np.uint8), labels=np.zeros(4, int))
        return str(folder / "x.npz"), images()
    if name == "negative":
        np.savez(folder / "x.npz", images=np.zeros((4, 3, 4, 5), np.uint8), labels=np.array([0, -1, 2, 1]))
        return str(folder / "x.npz"), images()
    if name == "arrays":
        np.savez(folder / "x.npz", pictures=np.zeros((4, 3, 4, 5), np.uint8))
        return str(folder / "x.npz"), images()
    return ("no-such-data", images()) if name == "missing" else (str(file), reader())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("label", r"bad.tsv: line 4 has label '7'; the model's labels are 0..2 \(bad, good, fair\)"),
        ("columns", r"line 1 has 3 columns; a .tsv line is SENTENCE<tab>LABEL"),
        ("json", r'bad.jsonl: line 1 is not an object such as {"text"'),
        ("folder", r"has no valid.tsv or valid.jsonl; a classifier of sentences reads train, valid and test"),
        ("size", r"x.npz has images of 9x9; the model reads 3x4x5 \(channels, height, width\)"),
        ("negative", r"image 1 has label '-1'; the model's labels are 0..2"),
        ("arrays", r"is not an .npz file with arrays images and labels"),
        (
            "missing",
            r"data=no-such-data is neither a .npz file, .* built in for a classifier of images: digits",
        ),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, name: str, line: str) -> None:
    data, read = bad(tmp_path, name)
    with pytest.raises(DataError, match=line) as error:
        open_labelled(data, read, Cache(tmp_path / "cache"))
    assert "\n" not in str(error.value)


def test_the_built_in_digits(tmp_path: Path) -> None:
    read = Reader("images", tuple(map(str, range(10))), pixels=(1, 8, 8))
    corpus = open_labelled("digits", read, Cache(tmp_path))
    assert sum(corpus.count(s) for s in Split) + corpus.repeats == 1797
    values = corpus.windows(Split.TEST)
    assert values.dtype == np.float32 and values.min() == -1 and values.max() == 1
