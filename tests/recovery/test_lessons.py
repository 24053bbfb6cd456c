"""Only *train* is read, every window once a pass, in an order that seed and step decide."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.cache import Cache
from autoprune.data import SEARCHED, open_corpus
from autoprune.errors import DataError, SettingError
from autoprune.objective import Split
from autoprune.recovery import lessons as module
from autoprune.recovery.lessons import Lessons, open_lessons
from tests import tiny


@pytest.mark.parametrize("split", SEARCHED)
def test_other_splits_are_refused(split: Split) -> None:
    with pytest.raises(SettingError, match=f"split train only, not on {split.value}"):
        Lessons(split, np.zeros((4, 8), np.int32))


def test_a_pass_shows_every_window_once(lessons: Lessons) -> None:
    shown = [tuple(row) for step in range(11) for row in lessons.batch(step, 2, seed=0).tolist()]
    assert set(Counter(shown).values()) == {2} and len(set(shown)) == 11
    assert len(set(shown[:11])) == 11 and shown[:11] != shown[11:]


def test_the_order_is_that_of_the_seed(lessons: Lessons) -> None:
    batches = [lessons.batch(3, 4, seed).tolist() for seed in (0, 0, 1)]
    assert batches[0] == batches[1] != batches[2]


def test_a_text_gives_its_train_windows(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text(tiny.text(20_000))
    cache = Cache(tmp_path / "cache")
    corpus = open_corpus(str(tmp_path / "t.txt"), tiny.tokenizer(), 32, cache)
    found = open_lessons(corpus, str(tmp_path / "t.txt"), tiny.tokenizer(), 32, cache)
    assert np.array_equal(found.windows, corpus.windows(Split.TRAIN))
    held = {row.tobytes() for split in SEARCHED for row in corpus.windows(split)}
    assert len(found.windows) > 200 and not held & {row.tobytes() for row in found.windows}


def test_the_built_in_corpus_is_cut_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tiny.text(4_000)
    shared = np.asarray(tiny.tokenizer()(text[:32])["input_ids"], np.int32)[None]
    corpus: Any = SimpleNamespace(digest="d", windows=lambda split: shared)
    monkeypatch.setattr(module, "_docs_text", lambda: text)
    found = open_lessons(corpus, "docs", tiny.tokenizer(), 32, Cache(tmp_path))
    assert found.split is Split.TRAIN and found.windows.shape[1] == 32
    assert len(found.windows) > 100 and shared.tobytes() not in {row.tobytes() for row in found.windows}


def test_a_train_split_that_is_too_short(lessons: Lessons) -> None:
    lessons.check(11)
    with pytest.raises(DataError) as told:
        lessons.check(12)
    assert "split train has 11 windows and recovery.batch=12 needs as many" in str(told.value)
