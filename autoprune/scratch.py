"""Scratch folders that are removed when their owner has died, however it died."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from autoprune.locks import lock, opened


@contextmanager
def scratch_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """An empty folder `parent/prefix…` that is ours while the context lasts, and gone after it unless it was renamed.

    Folders of this prefix whose owners have died are removed first.
    """
    with ExitStack() as ours:
        with _alone(parent):  # nobody sweeps meanwhile: a new folder is not locked at once
            _sweep(parent, prefix)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
            ours.enter_context(_alone(folder))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the lock on a folder, if its file system knows locks."""
    with opened(folder) as handle:
        with suppress(OSError):
            lock(handle)
        yield


def _sweep(parent: Path, prefix: str) -> None:
    for folder in parent.glob(f"{prefix}*"):
        with suppress(OSError), opened(folder) as handle:  # another user's, just gone, or no locks to ask
            if lock(handle, wait=False):  # its owner is dead
                shutil.rmtree(folder, ignore_errors=True)
