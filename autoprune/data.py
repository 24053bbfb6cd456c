"""Texts as token windows of five disjoint splits, in a frozen order, read from a memory-mapped cache."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoprune.cache import Cache
from autoprune.errors import DataError
from autoprune.objective import Split
from autoprune.space import digest

if TYPE_CHECKING:
    from torch import Tensor

Tokens = NDArray[np.int32]
Windows = NDArray[Any]  # token ids [N, T], or pixel values [N, C, H, W]
Tokenize = Callable[[str], Tokens]

REPEATS = "repeats"
LABELS = "-labels.npy"  # after the split's name
SEARCHED = (Split.CALIBRATION, Split.FITNESS, Split.SELECTION, Split.TEST)
FILE_SHARES = (
    (Split.TRAIN, 40),
    (Split.CALIBRATION, 10),
    (Split.FITNESS, 20),
    (Split.SELECTION, 10),
    (Split.TEST, 20),
)
STRICTEST_FIRST = (Split.TEST, Split.SELECTION, Split.FITNESS, Split.CALIBRATION, Split.TRAIN)
FEW, TOLERATED = 8, 0.05  # windows (and share of the smaller) that two files of a folder may have in common
FOLDER_FILES = {"train": ("train",), "valid": ("valid", "validation", "dev"), "test": ("test",)}


@dataclass(frozen=True)
class Corpus:
    """Windows per split, each split in its frozen seeded order: pieces of a text, or items with labels."""

    folder: Path
    digest: str

    def windows(self, split: Split) -> Windows:
        """All windows of a split, memory-mapped: token ids, or pixel values where the corpus is one of images."""
        return np.load(self.folder / f"{split.value}.npy", mmap_mode="r")  # type: ignore[no-any-return]

    def labels(self, split: Split) -> NDArray[np.int64] | None:
        """The label of every window, None where the corpus is a text."""
        file = self.folder / f"{split.value}{LABELS}"
        return np.load(file) if file.is_file() else None

    def text(self, split: Split) -> Tokens:
        """The tokens of *selection* or *test* in the order of the text, as far as its windows go."""
        windows = self.windows(split)
        return np.asarray(windows)[np.argsort(_order(len(windows)))].reshape(-1)

    @property
    def repeats(self) -> int:
        """Windows that were left out because a more strictly held-out split has them too."""
        return int((self.folder / REPEATS).read_text())

    def count(self, split: Split) -> int:
        """Number of windows of a split."""
        return len(self.windows(split))


def as_tensor(windows: Windows) -> Tensor:
    """Windows as a model reads them: int64 token ids, or fp32 pixel values; a copy."""
    import torch

    kind = np.int64 if np.issubdtype(windows.dtype, np.integer) else np.float32
    return torch.from_numpy(windows.astype(kind))


def corpus_name(data: str) -> str:
    """What the setting `data` names: `auto` is the built-in corpus."""
    return "docs" if data == "auto" else data


def open_corpus(data: str, tokenizer: Any, window: int, cache: Cache) -> Corpus:
    """Resolve `data` (a built-in name, a text file, or a folder with train, valid and test files) and cut it.

    The splits share no window: a few that occur in two of them (licence texts, runs of spaces) stay in the more
    strictly held out and are left out of the other (`Corpus.repeats` says how many); repeats within one split stay.
    Raises DataError naming the setting for a missing path, for a text that is unreadable or too short, and for a
    folder whose files have more in common than that.
    """
    tokenize, tokenizer_digest = tokenize_with(tokenizer)
    source, identity = _source(data)
    inputs = {"data": identity, "tokenizer": tokenizer_digest, "window": window, "format": 3}

    def build(folder: Path) -> None:
        cut = source(tokenize, window)
        arrays = {s: in_order(w) for s, w in _disjoint(cut).items()}
        _check(data, arrays, window)
        dropped = sum(len(w) for w in cut.values()) - sum(len(w) for w in arrays.values())
        (folder / REPEATS).write_text(str(dropped))
        for split, array in arrays.items():
            np.save(folder / f"{split.value}.npy", array)
        (folder / "digest").write_text(content_digest([arrays[s] for s in SEARCHED]))

    folder = cache.folder("tokens", inputs, build)
    check_disjoint(folder, data)
    return Corpus(folder, (folder / "digest").read_text())


def content_digest(arrays: Iterable[NDArray[Any]]) -> str:
    """Of the arrays' bytes, in order."""
    whole = hashlib.sha256()
    for array in arrays:
        whole.update(array.tobytes())
    return whole.hexdigest()[:12]


def tokenize_with(tokenizer: Any, special: bool = False, longest: int | None = None) -> tuple[Tokenize, str]:
    """From text to ids, with special tokens where asked for, cut to the longest; and a digest of the tokenizer."""
    if tokenizer is None:
        raise DataError("the model folder has no tokenizer: add its tokenizer.json")
    cut = {} if longest is None else {"truncation": True, "max_length": longest}

    def tokenize(text: str) -> Tokens:
        ids = tokenizer(text, add_special_tokens=special, verbose=False, **cut)["input_ids"]
        return np.asarray(ids, dtype=np.int32)

    backend = getattr(tokenizer, "backend_tokenizer", None)
    text = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    return tokenize, digest(text)


Cut = Callable[[Tokenize, int], dict[Split, Tokens]]


def _source(data: str) -> tuple[Cut, Any]:
    if data == "docs":
        return _cut_docs, ["docs", docs_identity()]
    path = Path(data).expanduser()
    if path.is_dir():
        files = {part: _member(path, part, names) for part, names in FOLDER_FILES.items()}
        identity = [file_digest(f) for f in files.values()]
        return lambda tokenize, window: _cut_folder(files, tokenize, window), ["folder", identity]
    if path.is_file():
        identity = [file_digest(path)]
        return lambda tokenize, window: _cut_file(path, tokenize, window), ["file", identity]
    raise DataError(f"data={data} is neither a file, a folder nor a built-in corpus; built in: docs")


def docs_identity() -> list[str]:
    """Versions that decide the built-in texts."""
    from autoprune.zoo import docs

    found = []
    for package in docs.PACKAGES:
        try:
            found.append(f"{package}={version(package)}")
        except PackageNotFoundError:
            found.append(f"{package}=absent")
    return [docs.SALT, platform.python_version(), *found]


def _cut_docs(tokenize: Tokenize, window: int) -> dict[Split, Tokens]:
    from autoprune.zoo import docs

    return {s: _cut(tokenize(docs.text(s)), window) for s in SEARCHED}


def _cut_folder(files: Mapping[str, Path], tokenize: Tokenize, window: int) -> dict[Split, Tokens]:
    """Train windows in a seeded order give 10 % to calibration and 20 % to fitness, the rest to training."""
    train, valid, test = (_cut(tokenize(_read(files[part])), window) for part in FOLDER_FILES)
    check_leaks(files, {"train": train, "valid": valid, "test": test})
    train = in_order(train)
    calibration, fitness = len(train) // 10, len(train) * 3 // 10
    return {
        Split.CALIBRATION: train[:calibration],
        Split.FITNESS: train[calibration:fitness],
        Split.TRAIN: train[fitness:],
        Split.SELECTION: valid,
        Split.TEST: test,
    }


def _cut_file(path: Path, tokenize: Tokenize, window: int) -> dict[Split, Tokens]:
    tokens = tokenize(_read(path))
    result, start, share_sum = {}, 0, 0
    for split, share in FILE_SHARES:
        share_sum += share
        stop = len(tokens) * share_sum // 100
        result[split] = _cut(tokens[start:stop], window)
        start = stop
    return result


def _member(folder: Path, part: str, names: tuple[str, ...]) -> Path:
    for name in names:
        for ending in (".txt", ".text", ""):
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    raise DataError(f"data={folder} has no {part}.txt; a data folder holds train.txt, valid.txt and test.txt")


def file_digest(path: Path) -> str:
    """Of a file's bytes; raises DataError when it cannot be read."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise DataError(f"data={path} cannot be read: {error.strerror}") from error


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data={path} cannot be read as UTF-8 text: {error}") from error


def _cut(tokens: Tokens, window: int) -> Tokens:
    return tokens[: len(tokens) // window * window].reshape(-1, window)


def in_order(windows: NDArray[Any]) -> NDArray[Any]:
    """The frozen order: a permutation that depends on nothing but the number of windows."""
    return windows[_order(len(windows))]


def _order(count: int) -> NDArray[np.int64]:
    return np.random.default_rng(0).permutation(count)


def _disjoint(arrays: Mapping[Split, Tokens]) -> dict[Split, Tokens]:
    """Without the windows that a more strictly held-out split has too."""
    seen: set[bytes] = set()
    kept = {}
    for split in (s for s in STRICTEST_FIRST if s in arrays):
        rows = [row.tobytes() for row in arrays[split]]
        kept[split] = arrays[split][np.array([row not in seen for row in rows], dtype=bool)]
        seen.update(rows)
    return kept


def check_leaks(files: Mapping[str, Path], arrays: Mapping[str, Tokens]) -> None:
    """Raise DataError when two files of a folder share more windows than texts happen to."""
    rows = {part: {row.tobytes() for row in windows} for part, windows in arrays.items()}
    for a, b in combinations(rows, 2):
        shared, smaller = len(rows[a] & rows[b]), min(len(rows[a]), len(rows[b]))
        if shared > max(FEW, TOLERATED * smaller):
            raise DataError(
                f"data={files[a].parent}: splits {a} and {b} have {shared} windows in common, "
                f"{shared / smaller:.0%} of the smaller; remove from {files[a].name} what {files[b].name} holds"
            )


def check_disjoint(folder: Path, data: str) -> None:
    """Raise DataError when stored splits share a window: it is found by its hash."""
    seen: dict[int, Split] = {}
    for split in (s for s in STRICTEST_FIRST if (folder / f"{s.value}.npy").is_file()):
        hashes = {hash(row.tobytes()) for row in np.load(folder / f"{split.value}.npy", mmap_mode="r")}
        shared = [seen[h] for h in hashes if h in seen]
        if shared:
            raise DataError(
                f"data={data}: splits {shared[0].value} and {split.value} have {len(shared)} identical windows; "
                f"remove {folder}, then they are cut again"
            )
        seen.update(dict.fromkeys(hashes, split))


def _check(data: str, arrays: Mapping[Split, Tokens], window: int) -> None:
    for split in SEARCHED:
        if not len(arrays[split]):
            raise DataError(
                f"data={data} is too short: split {split.value} has no window of window={window} tokens of its own; "
                "give more text or a smaller window"
            )
