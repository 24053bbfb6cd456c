"""Keeps what a library's C code writes from the user's terminal and pipes."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

OUTPUT = 1  # descriptor of standard output


@contextmanager
def silent_stdout() -> Iterator[None]:
    """Inside, what C code of this process writes to standard output goes nowhere, however late it is flushed."""
    with suppress(OSError, ValueError, AttributeError):  # closed, or there is none
        sys.stdout.flush()
    flush = ctypes.CDLL(None).fflush if os.name == "posix" else lambda stream: None
    kept = _copy(OUTPUT)
    if kept is None:  # nobody could hear it
        yield
        return
    flush(None)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, OUTPUT)
    os.close(nowhere)
    try:
        yield
        flush(None)
    finally:
        os.dup2(kept, OUTPUT)
        os.close(kept)


def _copy(descriptor: int) -> int | None:
    """Of a descriptor, where it is open."""
    try:
        return os.dup(descriptor)
    except OSError:
        return None
