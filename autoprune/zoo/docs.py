"""The built-in corpus: documentation that every installation carries, cut into the five splits.

Sources are the language topics of `pydoc_data`, the docstrings of the standard library and those of the pinned
dependencies. They are read where they are installed; none of the text is shipped. A document (one topic or one
module) belongs to the split that the hash of its name says, so splits agree between Python versions up to the
documents that a version adds or drops.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from autoprune.errors import DataError
from autoprune.objective import Split

PACKAGES = ("numpy", "pandas", "scipy", "matplotlib", "torch", "transformers")
SHARES = {  # per cent of documents, by the hash of their name
    Split.TRAIN: 80,
    Split.CALIBRATION: 4,
    Split.FITNESS: 6,
    Split.SELECTION: 4,
    Split.TEST: 6,
}
HELD_OUT_FIRST = (Split.TEST, Split.SELECTION, Split.FITNESS, Split.CALIBRATION, Split.TRAIN)
SALT = "docs-1"
SKIPPED_FOLDERS = {
    *("tests", "test", "testing", "idlelib", "lib2to3", "site-packages", "dist-packages"),
    *("pydoc_data", "_vendor", "externals", "extern", "__pycache__"),
}
LONG_PARAGRAPH = 80  # characters; shorter paragraphs ("Returns", "See Also") may repeat


@dataclass(frozen=True)
class Document:
    """One topic or module: its name decides its split."""

    name: str
    text: str


def split_of(name: str) -> Split:
    """The split a document of this name belongs to, on any machine and version."""
    draw = int(hashlib.sha256(f"{SALT}:{name}".encode()).hexdigest(), 16) % 100
    for split, share in SHARES.items():
        if draw < share:
            return split
        draw -= share
    raise AssertionError("shares must sum to 100")


def read_split(wanted: Split) -> list[Document]:
    """Documents of one split in name order, without long paragraphs already seen in splits held out more strictly.

    Raises DataError when the standard library's sources are not on disk (a zipped installation).
    """
    kept = [d for d in _read(HELD_OUT_FIRST.index(wanted))[0] if d.text]
    if not kept:
        raise DataError("data=docs: this installation carries no library sources to read; name a text file")
    return kept


@cache
def _read(position: int) -> tuple[tuple[Document, ...], frozenset[bytes]]:
    """Documents of a split, and digests of the long paragraphs of it and of all that are held out more strictly."""
    seen = set(_read(position - 1)[1]) if position else set()
    documents = tuple(_without_repeats(d, seen) for d in _documents(HELD_OUT_FIRST[position]))
    return documents, frozenset(seen)


def text(split: Split) -> str:
    """One split as one text, documents parted by an empty line."""
    return "\n\n".join(d.text for d in read_split(split))


def _documents(split: Split) -> Iterator[Document]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        if split_of(f"topic:{name}") is split:
            yield Document(f"topic:{name}", _clean(topics[name]))
    for name, path in _modules():
        if split_of(name) is split:
            yield Document(name, _clean("\n\n".join(_docstrings(path))))


@cache
def _modules() -> tuple[tuple[str, Path], ...]:
    """Names and files of all modules, packages in turn, in name order."""
    found = []
    for package, root in _roots():
        relatives = sorted(p.relative_to(root).as_posix() for p in root.rglob("*.py"))
        found += [(f"{package}:{r}", root / r) for r in relatives if not _skipped(r)]
    return tuple(found)


def _roots() -> Iterator[tuple[str, Path]]:
    yield "stdlib", Path(sysconfig.get_paths()["stdlib"])
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            yield package, Path(spec.origin).parent


def _skipped(relative: str) -> bool:
    parts = relative.split("/")
    return any(p in SKIPPED_FOLDERS or p.startswith(("config-", "test_")) for p in parts)


def _docstrings(path: Path) -> list[str]:
    try:
        with tokenize.open(path) as handle, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old escapes in library sources
            tree = ast.parse(handle.read())
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return []  # bad-syntax fixtures and encodings of their own: nothing to read there
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (n for n in ast.walk(tree) if isinstance(n, documented))
    return [d for n in nodes if (d := ast.get_docstring(n))]


def _clean(raw: str) -> str:
    """Drop lines that name people or rights holders; keep everything else."""
    lines = (line.rstrip() for line in raw.replace("\r", "").split("\n"))
    return "\n".join(line for line in lines if not _personal(line))


def _personal(line: str) -> bool:
    low = line.lower()
    rights = "copyright" in low or "all rights reserved" in low or "(c)" in low
    return rights or "author:" in low or ("@" in low and "." in low.partition("@")[2] and "<" in low)


def _without_repeats(document: Document, seen: set[bytes]) -> Document:
    kept = []
    for paragraph in document.text.split("\n\n"):
        paragraph = paragraph.strip("\n")
        if len(paragraph) >= LONG_PARAGRAPH:
            digest = hashlib.sha256(" ".join(paragraph.split()).encode()).digest()
            if digest in seen:
                continue
            seen.add(digest)
        if paragraph:
            kept.append(paragraph)
    return Document(document.name, "\n\n".join(kept))
