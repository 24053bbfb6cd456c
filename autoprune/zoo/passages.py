"""The built-in sentences: passages of the documentation, labelled with the part that they are from."""

from __future__ import annotations

from autoprune.objective import Split
from autoprune.zoo import docs

LANGUAGE = "language"  # the topics of pydoc_data
PARTS = (LANGUAGE, "stdlib", *docs.PACKAGES)
LEAST, MOST = 120, 260  # characters of a passage
TRAINED, HELD = 2500, 120  # passages of a part at most, in *train* and in each other split


def read(split: Split) -> list[tuple[str, str]]:
    """Passages with their part, at most so many of each, spread evenly over its documents."""
    found: dict[str, list[str]] = {part: [] for part in PARTS}
    for document in docs.read_split(split):
        part = document.name.partition(":")[0]
        found[LANGUAGE if part == "topic" else part] += _passages(document.text)
    limit = TRAINED if split is Split.TRAIN else HELD
    return [(text, part) for part in PARTS for text in _spread(found[part], limit)]


def _passages(text: str) -> list[str]:
    """Whole paragraphs one after another, cut where they are long, without what is left over and short."""
    found, open_ = [], ""
    for paragraph in text.split("\n\n"):
        open_ = f"{open_} {' '.join(paragraph.split())}".strip()
        while len(open_) >= LEAST:
            found.append(open_[:MOST])
            open_ = open_[MOST:]
    return found


def _spread(texts: list[str], limit: int) -> list[str]:
    if len(texts) <= limit:
        return texts
    return [texts[at * len(texts) // limit] for at in range(limit)]
