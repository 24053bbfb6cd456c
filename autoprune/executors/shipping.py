"""Files that workers need, sent through Ray's object store to nodes that do not see them: once to each node."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.executors.base import Spec

CHUNK = 16 << 20  # bytes of an object
KIND = "shipped"  # of the artifact, in the cache of a node that does not see the run's
CACHE = "cache"
LOCK = ".shipping"

Listed = Mapping[str, Mapping[str, int]]
"""Absolute path of a file or folder -> relative path of each file below it -> its size; a file's own is empty."""


@dataclass(frozen=True)
class Parcel:
    """Files in the object store: in the order of `listed`, each in chunks."""

    listed: Listed
    chunks: Sequence[Sequence[Any]]  # Ray's references; not resolved on the way


def listed(spec: Spec) -> Listed:
    """The files of a spec, with their sizes."""
    roots = [*spec.inputs, *(str(Path(spec.cache) / name) for name in spec.artifacts)]
    return {root: _files(Path(root)) for root in roots}


def _files(root: Path) -> dict[str, int]:
    if root.is_file():
        return {"": root.stat().st_size}
    found = sorted(p for p in root.rglob("*") if p.is_file())
    return {str(p.relative_to(root)): p.stat().st_size for p in found}


def missing(files: Listed) -> str:
    """The first file that is not here as it is listed, or an empty string."""
    for root, below in files.items():
        for name, size in below.items():
            path = Path(root) / name if name else Path(root)
            try:
                if path.stat().st_size != size:
                    return f"{path} (of another size)"
            except OSError:
                return str(path)
    return ""


def packed(files: Listed, put: Callable[[bytes], Any]) -> Parcel:
    """Put all of them into the object store."""
    chunks = []
    for root, below in files.items():
        for name in below:
            chunks.append([put(part) for part in _parts(Path(root) / name if name else Path(root))])
    return Parcel(files, chunks)


def _parts(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return list(iter(lambda: file.read(CHUNK), b""))


def unpacked(spec: Spec, parcel: Parcel, home: Path, get: Callable[[Any], bytes]) -> Spec:
    """The spec with the paths of this node, where the files are written unless another worker was faster.

    `home` is the node's own artifact cache; SettingError when it cannot be written.
    """
    from autoprune.cache import Cache
    from autoprune.locks import locked

    cache = Cache(home, source=f"model={Path(str(spec.settings['model'])).name} from another node")
    inputs = [dict(spec.digests), {path: dict(files) for path, files in parcel.listed.items()}]
    with ExitStack() as held:
        with suppress(OSError):  # where there are no locks, or no room for one: the cache tells
            home.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(home / LOCK))  # one of them writes, the others wait
        folder = cache.folder(KIND, inputs, lambda to: _write(spec, parcel, to, get))
    return _moved(spec, folder)


def _write(spec: Spec, parcel: Parcel, to: Path, get: Callable[[Any], bytes]) -> None:
    (to / CACHE).mkdir()
    chunks = iter(parcel.chunks)
    for root, below in parcel.listed.items():
        for name in below:
            path = to / _place(spec, root) / name if name else to / _place(spec, root)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                for reference in next(chunks):
                    file.write(get(reference))


def _place(spec: Spec, root: str) -> Path:
    """Where a file or folder goes, relative to all that is shipped; its own name stays, endings have a meaning."""
    if root in spec.inputs:
        return Path(f"input{spec.inputs.index(root)}") / Path(root).name
    return Path(CACHE) / os.path.relpath(root, spec.cache)


def _moved(spec: Spec, folder: Path) -> Spec:
    places = {root: str(folder / _place(spec, root)) for root in spec.inputs}

    def renamed(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: renamed(inner) for name, inner in value.items()}
        return places.get(value, value) if isinstance(value, str) else value

    return replace(
        spec, settings=renamed(spec.settings), cache=str(folder / CACHE), inputs=tuple(places.values())
    )
