"""Tells a full disk from other errors, whoever reports it."""

from __future__ import annotations

import errno
import sqlite3

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
WORDS = ("no space left on device", "disk quota exceeded", "file too large", "database or disk is full")
CUT = " requested and "  # NumPy: `1000 requested and 12 written`, without a cause


def disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what it was raised from, means that nothing more could be written.

    safetensors and transformers wrap the system's error, SQLite and NumPy have words of their own.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:  # a chain of causes may be a ring
        seen.add(id(error))
        said = str(error).lower()
        if isinstance(error, OSError) and (error.errno in FULL or (error.errno is None and CUT in said)):
            return True
        if isinstance(error, sqlite3.OperationalError) and _write_failed(error):
            return True
        if any(words in said for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


def _write_failed(error: sqlite3.Error) -> bool:
    """SQLite calls a full disk by its name, and a quota or a limit a failed write."""
    name = str(getattr(error, "sqlite_errorname", ""))
    return name == "SQLITE_FULL" or name.startswith(
        ("SQLITE_IOERR_WRITE", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_SHM")
    )
