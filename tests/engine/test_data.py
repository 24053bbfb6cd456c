"""Five disjoint splits in a frozen order, and one line for data that cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.cache import Cache
from autoprune.data import SEARCHED, Corpus, open_corpus
from autoprune.errors import DataError
from autoprune.objective import Split
from tests import tiny

WINDOW = 16
ALL = (Split.TRAIN, *SEARCHED)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


def numbers(count: int, start: int = 0) -> str:
    """Text whose windows all differ: numbers of seven digits and a space."""
    return "".join(f"{i:07d} " for i in range(start, start + count))


def decoded(corpus: Corpus, split: Split, tokenizer: Any) -> list[str]:
    return [tokenizer.decode(row) for row in corpus.windows(split).tolist()]


def test_a_file_is_cut_in_contiguous_pieces(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    text = numbers(2000)  # 1000 windows
    (tmp_path / "text.txt").write_text(text)
    corpus = open_corpus(str(tmp_path / "text.txt"), tokenizer, WINDOW, cache)
    assert [corpus.count(s) for s in ALL] == [400, 100, 200, 100, 200]
    pieces = [sorted(decoded(corpus, split, tokenizer)) for split in ALL]
    assert "".join(window for piece in pieces for window in piece) == text


def test_a_folder_gives_selection_and_test_as_they_are(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    (tmp_path / "train.txt").write_text(numbers(2000))
    (tmp_path / "validation.txt").write_text(numbers(200, 5000))
    (tmp_path / "test.txt").write_text(numbers(400, 9000))
    corpus = open_corpus(str(tmp_path), tokenizer, WINDOW, cache)
    assert [corpus.count(s) for s in ALL] == [700, 100, 200, 100, 200]
    assert "".join(sorted(decoded(corpus, Split.SELECTION, tokenizer))) == numbers(200, 5000)
    assert "".join(sorted(decoded(corpus, Split.TEST, tokenizer))) == numbers(400, 9000)
    train = [
        w for s in (Split.TRAIN, Split.CALIBRATION, Split.FITNESS) for w in decoded(corpus, s, tokenizer)
    ]
    assert "".join(sorted(train)) == numbers(2000)


def shared_windows(corpus: Corpus) -> list[str]:
    """Pairs of splits that have a window in common."""
    rows = {s: {row.tobytes() for row in corpus.windows(s)} for s in ALL}
    return [f"{a.value}, {b.value}" for a in ALL for b in ALL if a is not b and rows[a] & rows[b]]


def test_splits_are_disjoint_though_the_text_repeats(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    """Runs of spaces and a repeated licence: what two splits have stays in the stricter one."""
    licence = "free of charge, ".ljust(WINDOW)
    part = numbers(200) + " " * (4 * WINDOW) + licence
    text = "".join(part.replace("0000", f"{i:04d}", 200) for i in range(10))
    (tmp_path / "text.txt").write_text(text)
    corpus = open_corpus(str(tmp_path / "text.txt"), tokenizer, WINDOW, cache)
    assert not shared_windows(corpus)
    for split in ALL:
        held = decoded(corpus, split, tokenizer).count(" " * WINDOW)
        assert held == (8 if split is Split.TEST else 0)  # two parts of ten, four windows in each
        assert (licence in decoded(corpus, split, tokenizer)) is (split is Split.TEST)


def test_documentation_of_the_language_can_be_used(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    (tmp_path / "text.txt").write_text(tiny.text())
    corpus = open_corpus(str(tmp_path / "text.txt"), tokenizer, WINDOW, cache)
    assert not shared_windows(corpus)
    assert corpus.count(Split.FITNESS) > 0.9 * 0.2 * len(tiny.text()) / WINDOW


def folder(tmp_path: Path, **texts: str) -> Path:
    """A data folder of these texts."""
    path = tmp_path / "data"
    path.mkdir()
    for name, text in texts.items():
        (path / f"{name}.txt").write_text(text)
    return path


def test_a_few_repeats_are_left_out_and_counted(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    path = folder(
        tmp_path, train=numbers(2000), valid=numbers(200, 5000), test=numbers(4) + numbers(400, 9000)
    )
    corpus = open_corpus(str(path), tokenizer, WINDOW, cache)
    assert corpus.repeats == 2 and not shared_windows(corpus)
    assert sum(map(corpus.count, ALL)) == 1000 + 100 + 202 - 2


def test_splits_that_share_their_text_are_refused(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    """Both splits, how many windows, and what to do."""
    path = folder(tmp_path, train=numbers(2000), valid=numbers(400, 9000), test=numbers(200, 9000))
    with pytest.raises(DataError) as caught:
        open_corpus(str(path), tokenizer, WINDOW, cache)
    assert str(caught.value) == (
        f"data={path}: splits valid and test have 100 windows in common, 100% of the smaller; "
        "remove from valid.txt what test.txt holds"
    )


def test_identical_windows_are_found_whenever_a_corpus_is_opened(
    tmp_path: Path, tokenizer: Any, cache: Cache
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(numbers(500))
    corpus = open_corpus(str(path), tokenizer, WINDOW, cache)
    fitness = corpus.folder / "fitness.npy"
    rows = np.load(fitness)
    rows[3] = corpus.windows(Split.TEST)[7]
    np.save(fitness, rows)
    with pytest.raises(DataError, match="splits test and fitness have 1 identical windows; remove "):
        open_corpus(str(path), tokenizer, WINDOW, cache)


def unusable(tmp_path: Path, name: str) -> str:
    """A `data` that cannot be used."""
    path = tmp_path / "text.txt"
    content = {"empty": b"", "short": b"a b", "spaces": b" " * 5000, "latin": b"caf\xe9 " * 500}
    if name == "missing":
        return str(path)
    if name == "no_valid":
        (tmp_path / "train.txt").write_text(numbers(100))
        return str(tmp_path)
    path.write_bytes(content[name])
    return str(path)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("empty", "is too short: split calibration has no window of window=16 tokens"),
        ("short", "is too short"),
        ("spaces", "is too short: split calibration has no window of window=16 tokens of its own"),
        ("latin", "cannot be read as UTF-8"),
        ("missing", "is neither a file, a folder nor a built-in corpus; built in: docs"),
        ("no_valid", "has no valid.txt; a data folder holds train.txt, valid.txt and test.txt"),
    ],
)
def test_what_cannot_be_used_is_told_in_one_line(
    tmp_path: Path, tokenizer: Any, cache: Cache, name: str, says: str
) -> None:
    data = unusable(tmp_path, name)
    with pytest.raises(DataError) as caught:
        open_corpus(data, tokenizer, WINDOW, cache)
    line = str(caught.value)
    assert line.startswith(f"data={data}") and says in line and "\n" not in line


def test_a_model_without_tokenizer_is_told(tmp_path: Path, cache: Cache) -> None:
    with pytest.raises(DataError, match="has no tokenizer"):
        open_corpus(str(tmp_path), None, WINDOW, cache)


def test_the_second_time_it_comes_from_the_cache(
    tmp_path: Path, tokenizer: Any, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.txt"
    path.write_text(numbers(500))
    first = open_corpus(str(path), tokenizer, WINDOW, cache)
    monkeypatch.setattr("autoprune.data._cut_file", None)
    assert open_corpus(str(path), tokenizer, WINDOW, cache) == first
    assert isinstance(first.windows(Split.TEST), np.memmap)


def test_text_and_window_are_in_the_digest(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    a, b = tmp_path / "a.txt", tmp_path / "b.txt"
    a.write_text(numbers(500))
    b.write_text(numbers(500, 1))
    found = [open_corpus(str(a), tokenizer, WINDOW, cache), open_corpus(str(b), tokenizer, WINDOW, cache)]
    found.append(open_corpus(str(a), tokenizer, 2 * WINDOW, cache))
    assert len({c.digest for c in found}) == len({c.folder for c in found}) == 3


SCRIPT = """
import sys
from pathlib import Path
from autoprune.cache import Cache
from autoprune.data import open_corpus

class Bytes:
    def get_vocab(self):
        return {str(i): i for i in range(256)}

    def __call__(self, text, **options):
        return {"input_ids": list(text.encode())}

print(open_corpus(sys.argv[1], Bytes(), 16, Cache(Path(sys.argv[2]))).digest)
"""


def test_the_order_is_frozen_across_processes(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(numbers(500))
    monkeypatch.setenv("PYTHONPATH", str(root))
    told = []
    for seed in ("3", "4"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / "text.txt"), str(tmp_path / seed)]
        told.append(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    assert told == ["6e4b2231ee4a"] * 2


def test_windows_are_shuffled(tmp_path: Path, tokenizer: Any, cache: Cache) -> None:
    (tmp_path / "text.txt").write_text(numbers(2000))
    found = decoded(open_corpus(str(tmp_path / "text.txt"), tokenizer, WINDOW, cache), Split.TEST, tokenizer)
    assert found != sorted(found)
