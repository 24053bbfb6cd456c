"""Items with labels, in the five splits: sentences as padded token ids, images as pixel values."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.cache import Cache
from autoprune.data import (
    FILE_SHARES,
    FOLDER_FILES,
    LABELS,
    REPEATS,
    SEARCHED,
    STRICTEST_FIRST,
    Corpus,
    Tokenize,
    Windows,
    check_disjoint,
    check_leaks,
    content_digest,
    docs_identity,
    file_digest,
    in_order,
    tokenize_with,
)
from autoprune.errors import DataError
from autoprune.objective import Split
from autoprune.shape import Task

Labels = NDArray[np.int64]
Items = tuple[Windows, Labels]
PADDING = -1  # in place of a token id, so that ids carry their own mask
ENDINGS: Mapping[Task, tuple[str, ...]] = {"sentences": (".tsv", ".jsonl"), "images": (".npz",)}
BUILT_IN: Mapping[Task, str] = {"sentences": "docs", "images": "digits"}
TEXT, LABEL = ("text", "sentence"), "label"  # keys of a line of JSON


@dataclass(frozen=True)
class Reader:
    """How a classifier reads items: its classes in the order of its logits, and what an image must look like."""

    task: Task
    classes: tuple[str, ...]
    tokenizer: Any = None
    longest: int = 256  # tokens of a sentence; what is longer is cut
    pixels: tuple[int, int, int] = (0, 0, 0)  # channels, height and width
    scale: float = 1 / 255  # of bytes; arrays of floats are taken as they are
    mean: float | Sequence[float] = 0.5
    std: float | Sequence[float] = 0.5

    def label(self, raw: object, where: str) -> int:
        """The index of a class, by its number or name; raises DataError for any other."""
        word = str(raw)
        if word in self.classes:
            return self.classes.index(word)
        if word.lstrip("-").isdigit() and 0 <= int(word) < len(self.classes):
            return int(word)
        raise DataError(
            f"{where} has label {word!r}; the model's labels are 0..{len(self.classes) - 1}"
            f" ({', '.join(self.classes[:4])}{', …' if len(self.classes) > 4 else ''})"
        )


def open_labelled(data: str, reader: Reader, cache: Cache) -> Corpus:
    """Resolve `data` (a built-in name, a file, or a folder with train, valid and test files) for a classifier.

    Sentences are lines `SENTENCE<tab>LABEL` (.tsv) or `{"text": …, "label": …}` (.jsonl); images are arrays `images`
    [N, H, W], [N, H, W, C] or [N, C, H, W] and `labels` [N] (.npz). A single file is shuffled and cut into the five
    splits; of a folder's train file calibration takes 10 % and fitness 20 %. No item is in two splits. Raises
    DataError, naming the file, for what is missing, unreadable, of another size, or has a label outside the range.
    """
    read, identity = _source(data, reader)
    about: list[Any] = [reader.classes, reader.longest, reader.pixels, reader.scale, reader.mean, reader.std]
    if reader.task == "sentences":
        about.append(tokenize_with(reader.tokenizer)[1])
    inputs = {"data": identity, "reader": about, "format": 1}

    def build(folder: Path) -> None:
        cut = read()
        arrays = _disjoint(cut)
        _check(data, arrays)
        (folder / REPEATS).write_text(
            str(sum(len(w) for w, _ in cut.values()) - sum(map(_size, arrays.values())))
        )
        for split, (windows, labels) in arrays.items():
            np.save(folder / f"{split.value}.npy", in_order(windows))
            np.save(folder / f"{split.value}{LABELS}", in_order(labels))
        stored = [part for s in SEARCHED for part in arrays[s]]
        (folder / "digest").write_text(content_digest(stored))

    folder = cache.folder("labelled", inputs, build)
    check_disjoint(folder, data)
    return Corpus(folder, (folder / "digest").read_text())


def _size(items: Items) -> int:
    return len(items[1])


def _source(data: str, reader: Reader) -> tuple[Callable[[], dict[Split, Items]], Any]:
    if data == BUILT_IN[reader.task]:
        from autoprune.zoo import digits, passages

        if reader.task == "images":
            return lambda: _shuffled(_pixels(data, *digits.read(), reader)), ["digits", digits.version()]
        return lambda: {s: _built_in(passages.read(s), reader) for s in SEARCHED}, [
            "passages",
            docs_identity(),
        ]
    if data in BUILT_IN.values():
        raise DataError(
            f"data={data} is not what this model reads, which is {reader.task}; built in: {BUILT_IN[reader.task]}"
        )
    path = Path(data).expanduser()
    if path.is_dir():
        files = {part: _member(path, part, names, reader.task) for part, names in FOLDER_FILES.items()}
        return lambda: _folder(files, reader), ["folder", [file_digest(f) for f in files.values()]]
    if path.is_file():
        return lambda: _shuffled(_read(path, reader)), ["file", file_digest(path)]
    raise DataError(
        f"data={data} is neither a {' or '.join(ENDINGS[reader.task])} file, a folder of them nor built in; "
        f"built in for a classifier of {reader.task}: {BUILT_IN[reader.task]}"
    )


def _member(folder: Path, part: str, names: Sequence[str], task: Task) -> Path:
    for name in names:
        for ending in ENDINGS[task]:
            if (folder / f"{name}{ending}").is_file():
                return folder / f"{name}{ending}"
    wanted = " or ".join(f"{part}{ending}" for ending in ENDINGS[task])
    raise DataError(
        f"data={folder} has no {wanted}; a classifier of {task} reads train, valid and test files"
    )


def _folder(files: Mapping[str, Path], reader: Reader) -> dict[Split, Items]:
    parts = {part: _read(file, reader) for part, file in files.items()}
    if reader.task == "sentences":
        widest = max(windows.shape[1] for windows, _ in parts.values())
        parts = {part: (_widened(windows, widest), labels) for part, (windows, labels) in parts.items()}
    check_leaks(files, {part: windows for part, (windows, _) in parts.items()})
    windows, labels = (in_order(array) for array in parts["train"])
    calibration, fitness = len(windows) // 10, len(windows) * 3 // 10
    return {
        Split.CALIBRATION: (windows[:calibration], labels[:calibration]),
        Split.FITNESS: (windows[calibration:fitness], labels[calibration:fitness]),
        Split.TRAIN: (windows[fitness:], labels[fitness:]),
        Split.SELECTION: parts["valid"],
        Split.TEST: parts["test"],
    }


def _shuffled(items: Items) -> dict[Split, Items]:
    """Files are often in the order of their labels."""
    windows, labels = (in_order(array) for array in items)
    result, start, share_sum = {}, 0, 0
    for split, share in FILE_SHARES:
        share_sum += share
        stop = len(labels) * share_sum // 100
        result[split] = (windows[start:stop], labels[start:stop])
        start = stop
    return result


def _read(path: Path, reader: Reader) -> Items:
    if reader.task == "images":
        return _arrays(path, reader)
    found = _lines(path, reader)
    return padded([text for text, _ in found], [label for _, label in found], reader)


def _built_in(found: Sequence[tuple[str, str]], reader: Reader) -> Items:
    labels = [reader.label(part, "data=docs: a passage") for _, part in found]
    return padded([text for text, _ in found], labels, reader, full=True)


def _lines(path: Path, reader: Reader) -> list[tuple[str, int]]:
    """Sentences and labels of a .tsv or .jsonl file; a first line `sentence<tab>label` is a header."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"data={path} cannot be read as UTF-8 text: {error}") from error
    found = []
    for number, line in enumerate(lines, 1):
        where = f"data={path}: line {number}"
        if not line.strip() or (number == 1 and line.lower().split("\t") in ([n, LABEL] for n in TEXT)):
            continue
        text, raw = _object(line, where) if path.suffix == ".jsonl" else _columns(line, where)
        found.append((text, reader.label(raw, where)))
    return found


def _object(line: str, where: str) -> tuple[str, object]:
    try:
        row = json.loads(line)
        return str(next(row[name] for name in TEXT if name in row)), row[LABEL]
    except (ValueError, TypeError, KeyError, StopIteration) as error:
        raise DataError(f'{where} is not an object such as {{"text": "…", "label": 0}}') from error


def _columns(line: str, where: str) -> tuple[str, str]:
    cells = line.split("\t")
    if len(cells) != 2:
        raise DataError(f"{where} has {len(cells)} columns; a .tsv line is SENTENCE<tab>LABEL")
    return cells[0], cells[1].strip()


def padded(texts: Sequence[str], labels: Sequence[int], reader: Reader, full: bool = False) -> Items:
    """Token ids [N, T], `PADDING` at the right; T is the longest sentence's, or with `full` what the reader takes."""
    tokenize: Tokenize = tokenize_with(reader.tokenizer, special=True, longest=reader.longest)[0]
    rows = [tokenize(text) for text in texts]
    widest = reader.longest if full else max((len(row) for row in rows), default=1)
    ids = np.full((len(rows), widest), PADDING, dtype=np.int32)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    return ids, np.array(labels, dtype=np.int64)


def _widened(ids: Windows, width: int) -> Windows:
    return np.pad(ids, ((0, 0), (0, width - ids.shape[1])), constant_values=PADDING)


def _arrays(path: Path, reader: Reader) -> Items:
    try:
        with np.load(path, allow_pickle=False) as file:
            images, raw = file["images"], file["labels"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"data={path} is not an .npz file with arrays images and labels: {error}") from error
    if raw.shape != (len(images),):
        raise DataError(f"data={path}: {len(images)} images have labels of shape {list(raw.shape)}")
    return _pixels(str(path), images, raw, reader)


def _pixels(data: str, images: Windows, raw: NDArray[Any], reader: Reader) -> Items:
    """Pixel values [N, C, H, W] in fp32, normed as the model's own preparation does."""
    whole = images[:, None] if images.ndim == 3 else images
    if whole.ndim == 4 and whole.shape[1:] != reader.pixels and whole.shape[3] == reader.pixels[0]:
        whole = whole.transpose(0, 3, 1, 2)
    if whole.shape[1:] != reader.pixels:
        wanted = "x".join(map(str, reader.pixels))
        raise DataError(
            f"data={data} has images of {'x'.join(map(str, images.shape[1:]))}; the model reads {wanted} "
            "(channels, height, width)"
        )
    values = whole.astype(np.float32)
    if np.issubdtype(images.dtype, np.integer):
        mean, std = (np.asarray(v, dtype=np.float32).reshape(-1, 1, 1) for v in (reader.mean, reader.std))
        values = (values * np.float32(reader.scale) - mean) / std
    labels = [reader.label(label, f"data={data}: image {at}") for at, label in enumerate(raw.tolist())]
    return np.ascontiguousarray(values), np.array(labels, dtype=np.int64)


def _disjoint(arrays: Mapping[Split, Items]) -> dict[Split, Items]:
    """Without the items that a more strictly held-out split has too."""
    seen: set[bytes] = set()
    kept = {}
    for split in (s for s in STRICTEST_FIRST if s in arrays):
        windows, labels = arrays[split]
        rows = [row.tobytes() for row in windows]
        alone = np.array([row not in seen for row in rows], dtype=bool)
        kept[split] = windows[alone], labels[alone]
        seen.update(rows)
    return kept


def _check(data: str, arrays: Mapping[Split, Items]) -> None:
    for split in SEARCHED:
        if not _size(arrays[split]):
            raise DataError(
                f"data={data} is too short: split {split.value} has no item of its own; give more"
            )
