"""The documentation corpus: stable splits, large enough, without repeats or people's names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import accumulate, combinations

import pytest

from autoprune.errors import DataError
from autoprune.objective import Split
from autoprune.zoo import docs
from autoprune.zoo.docs import HELD_OUT_FIRST, LONG_PARAGRAPH, Document, read_split, split_of

CHARACTERS_PER_TOKEN = (
    4  # more than a small vocabulary has: 60,000 tokens are fewer characters than this says
)
NAMES = {
    "stdlib:argparse.py": Split.TEST,
    "stdlib:os.py": Split.SELECTION,
    "matplotlib:axes/_axes.py": Split.SELECTION,
    "stdlib:sqlite3/dbapi2.py": Split.FITNESS,
    "topic:strings": Split.FITNESS,
    "topic:while": Split.CALIBRATION,
    "topic:lambda": Split.TRAIN,
    "torch:optim/adam.py": Split.TRAIN,
}


def paragraphs(documents: Sequence[Document]) -> set[bytes]:
    """Digests of the long paragraphs, spaces aside."""
    parts = (p for d in documents for p in d.text.split("\n\n"))
    return {hashlib.sha256(" ".join(p.split()).encode()).digest() for p in parts if len(p) >= LONG_PARAGRAPH}


@pytest.fixture(scope="module")
def language() -> Iterator[None]:
    """The corpus without the packages, which take long to read."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docs, "PACKAGES", ())
        for cached in (docs._read, docs._modules):
            cached.cache_clear()
        yield
    for cached in (docs._read, docs._modules):
        cached.cache_clear()


def check_no_repeats(splits: Sequence[Split]) -> None:
    found = {s: paragraphs(read_split(s)) for s in splits}
    for i, a in enumerate(splits):
        assert found[a]
        for b in splits[i + 1 :]:
            assert not found[a] & found[b], f"{a.value} and {b.value} share paragraphs"


@pytest.mark.parametrize(("name", "split"), NAMES.items())
def test_a_name_keeps_its_split_on_every_machine(name: str, split: Split) -> None:
    assert split_of(name) is split


def test_shares_are_per_cent() -> None:
    assert sum(docs.SHARES.values()) == 100 and set(docs.SHARES) == set(Split) == set(HELD_OUT_FIRST)
    drawn = [split_of(f"package:module_{i}.py") for i in range(4000)]
    for split, share in docs.SHARES.items():
        assert abs(drawn.count(split) / 40 - share) < 2.5


@pytest.mark.parametrize("split", HELD_OUT_FIRST)
def test_every_split_is_large_enough(split: Split) -> None:
    least = (60_000 if split in (Split.FITNESS, Split.TEST) else 30_000) * CHARACTERS_PER_TOKEN
    sizes = accumulate(len(d.text) for d in docs._documents(split))  # no more is read than it takes
    assert any(size >= 1.1 * least for size in sizes)  # a tenth may be repeats


def test_documents_stand_in_their_own_split_once(language: None) -> None:
    for split in HELD_OUT_FIRST[:-1]:
        names = [d.name for d in read_split(split)]
        assert all(split_of(n) is split for n in names) and len(set(names)) == len(names)


def test_no_long_paragraph_is_in_two_held_out_splits(language: None) -> None:
    raw = [paragraphs(list(docs._documents(s))) for s in HELD_OUT_FIRST[:-1]]
    assert any(a & b for a, b in combinations(raw, 2)), "nothing repeats here: the test is blind"
    check_no_repeats(HELD_OUT_FIRST[:-1])


@pytest.mark.slow
def test_no_long_paragraph_is_in_two_splits_of_the_whole_corpus() -> None:
    check_no_repeats(HELD_OUT_FIRST)


def test_lines_that_name_people_or_rights_holders_are_gone(language: None) -> None:
    for split in HELD_OUT_FIRST[:-1]:
        for line in docs.text(split).lower().splitlines():
            assert "copyright" not in line and "all rights reserved" not in line and "author:" not in line
            assert not ("<" in line and "@" in line and "." in line.partition("@")[2]), line


def test_cleaning_keeps_the_rest() -> None:
    raw = "Reads files.\nAuthor: A. Person\nWritten by A <a@b.org>\n(c) Somebody\r\nUses @decorator.  \n"
    assert docs._clean(raw) == "Reads files.\nUses @decorator.\n"


def test_repeats_are_dropped_from_the_later_document() -> None:
    long, seen = "word " * 30, set[bytes]()
    first = docs._without_repeats(Document("a", f"Returns\n\n{long}"), seen)
    second = docs._without_repeats(Document("b", f"Returns\n\n{long.replace(' ', '  ')}\n\nmore"), seen)
    assert long.strip() in first.text and second.text == "Returns\n\nmore"


def test_an_installation_without_sources_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    docs._read.cache_clear()
    monkeypatch.setattr(docs, "_documents", lambda split: iter(()))
    try:
        with pytest.raises(DataError, match="data=docs: this installation carries no library sources"):
            read_split(Split.TEST)
    finally:
        docs._read.cache_clear()
