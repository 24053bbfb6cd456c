"""Locks on files and folders, which end with the process that holds them, however it ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MADE = os.O_RDWR | os.O_CREAT  # opens a file, and makes it when it is missing


@contextmanager
def opened(path: Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    """A handle of a file or folder; closing it ends its lock."""
    handle = os.open(path, flags, 0o666)
    try:
        yield handle
    finally:
        os.close(handle)


def lock(handle: int, shared: bool = False, wait: bool = True) -> bool:
    """Lock what is open; False when another holds it and we do not wait. Raises OSError where there are no locks."""
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, shared: bool = False) -> Iterator[None]:
    """Hold a lock on `path` (made when it is missing), waiting for it; raises OSError where there are no locks."""
    with opened(path, MADE) as handle:
        lock(handle, shared)
        yield


def take(path: Path) -> int | None:
    """Lock `path` without waiting: a handle that keeps the lock until it is closed, None when another holds it."""
    handle = os.open(path, MADE, 0o666)
    ours = False
    try:
        ours = lock(handle, wait=False)
    finally:
        if not ours:
            os.close(handle)
    return handle if ours else None


def held(path: Path) -> bool:
    """Whether a living process holds the lock on `path`; where there are no locks, nobody can."""
    try:
        with opened(path) as handle:
            return not lock(handle, shared=True, wait=False)
    except OSError:
        return False
