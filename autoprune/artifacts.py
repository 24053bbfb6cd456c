"""What the artifact cache holds, and removing from it what no living process uses."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from autoprune.errors import SettingError
from autoprune.locks import held, locked, take

SOURCE = ".made-from"  # inside an artifact: what it was made from, in words
LOCK = ".lock"  # shared by who looks an artifact up, exclusive for who removes some
LIVE = ".live"  # one locked file per process that uses the cache
REMOVED = ".removed-"
BOUND = "AUTOPRUNE_TEACHER_CACHE"  # how large the teachers may grow
DEFAULT_BOUND = "8GB"
UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_leases: dict[tuple[int, Path], int] = {}  # handles of this process's locked files, kept open while it lives
_grown: dict[Path, int] = {}  # bytes that this process has added since the bound was last looked at


@dataclass(frozen=True)
class Artifact:
    """One artifact: its folder, size on disk in bytes, when it was made and last used, what it was made from."""

    folder: Path
    bytes: int
    made: float
    used: float
    source: str

    @property
    def kind(self) -> str:
        """ladders, teacher, tokens, latency …"""
        return self.folder.parent.name


class Usage:
    """Marks artifacts as used by this process; a process that lives protects all it has used."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def found(self, target: Path) -> bool:
        """Whether the artifact is there; from then on nobody removes it while this process lives."""
        try:
            _lease(self._root)
            with locked(self._root / LOCK, shared=True):
                if target.is_dir():
                    os.utime(target)
                    return True
                return False
        except OSError:  # a cache that cannot be written or locked cannot be pruned by us either
            return target.is_dir()


def _lease(root: Path) -> None:
    """A locked file that says since when this process has used the cache."""
    me = (os.getpid(), root)
    if me in _leases or not root.is_dir():
        return
    with locked(root / LOCK):
        (root / LIVE).mkdir(exist_ok=True)
        _oldest_living(root)
        made, name = tempfile.mkstemp(prefix=f"{me[0]}-", dir=root / LIVE)
        os.close(made)
        handle = take(Path(name))
        if handle is not None:
            _leases[me] = handle


def _oldest_living(root: Path) -> float:
    """Since when living processes have used the cache, infinite when there are none; forgets the dead ones."""
    oldest = float("inf")
    for file in (root / LIVE).glob("*-*"):
        if held(file):
            oldest = min(oldest, file.stat().st_mtime)
        else:
            file.unlink(missing_ok=True)
    return oldest


def artifacts(root: Path, kinds: Iterable[str] = ()) -> list[Artifact]:
    """All complete artifacts, the longest unused first."""
    wanted = set(kinds)
    found = []
    for folder in root.glob("[!.]*/[!.]*"):
        if folder.is_dir() and (not wanted or folder.parent.name in wanted):
            with suppress(FileNotFoundError):  # another process has just removed it
                found.append(_artifact(folder))
    return sorted(found, key=lambda a: (a.used, a.folder))


def _artifact(folder: Path) -> Artifact:
    used = folder.stat().st_mtime
    files = [entry.stat() for entry in os.scandir(folder) if entry.is_file()]
    made = min((f.st_mtime for f in files), default=used)
    return Artifact(folder, sum(f.st_size for f in files), made, used, _source(folder))


def _source(folder: Path) -> str:
    try:
        return str(json.loads((folder / SOURCE).read_text()))
    except (OSError, ValueError):
        return ""


def prune(
    root: Path, wanted: Callable[[list[Artifact]], list[Artifact]], dry: bool = False
) -> tuple[list[Artifact], list[Artifact]]:
    """Remove what `wanted` picks of all artifacts; returns what went, and what stayed because it is in use.

    A living process protects all artifacts that were used since it first looked one up. Looking up and removing
    exclude each other, so a path that was handed out stays valid. Raises OSError when the cache cannot be written.
    """
    with locked(root / LOCK):
        since = _oldest_living(root)
        picked = wanted(artifacts(root))
        used = [a for a in picked if a.used >= since]
        gone = [a for a in picked if a.used < since]
        for number, artifact in enumerate([] if dry else gone):  # out of sight at once: removing takes longer
            aside = f"{REMOVED}{os.getpid()}-{number}-{artifact.folder.name}"
            os.replace(artifact.folder, artifact.folder.with_name(aside))
    for folder in [] if dry else root.glob(f"*/{REMOVED}*"):  # also what a killed pruning left
        shutil.rmtree(folder, ignore_errors=True)
    return gone, used


def over(bound: int) -> Callable[[list[Artifact]], list[Artifact]]:
    """Picks the longest unused until what stays takes at most `bound` bytes."""

    def pick(found: list[Artifact]) -> list[Artifact]:
        total, picked = sum(a.bytes for a in found), []
        for artifact in found:
            if total <= bound:
                break
            picked.append(artifact)
            total -= artifact.bytes
        return picked

    return pick


def keep_within(root: Path, kind: str, added: Path) -> None:
    """After an artifact was added: hold the teachers within their bound, looking only now and then."""
    if kind != "teacher":
        return
    bound = teacher_bound()
    _grown[root] = _grown.get(root, bound) + _artifact(added).bytes  # the first time counts as much
    if _grown[root] <= bound // 64:
        return
    _grown[root] = 0
    pick = over(bound)
    prune(root, lambda found: pick([a for a in found if a.kind == kind]))


def teacher_bound() -> int:
    """`$AUTOPRUNE_TEACHER_CACHE` in bytes."""
    return parse_size(os.environ.get(BOUND) or DEFAULT_BOUND, BOUND)


def parse_size(text: str, setting: str) -> int:
    """Bytes of `5GB`, `500MB` or `0`; raises SettingError naming the setting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise SettingError(f"{setting}={text} is not a size; write 5GB or 500MB")
    return int(float(match[1]) * UNITS[match[2]])


def parse_age(text: str, setting: str) -> float:
    """Seconds of `30d`, `12h` or `2w`; raises SettingError naming the setting."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhdw])", text.strip().lower())
    if match is None:
        raise SettingError(f"{setting} {text} is not an age; write 30d, 12h or 2w")
    return float(match[1]) * SPANS[match[2]]


def older(age: float) -> Callable[[list[Artifact]], list[Artifact]]:
    """Picks what was not used for `age` seconds."""
    limit = time.time() - age
    return lambda found: [a for a in found if a.used < limit]
