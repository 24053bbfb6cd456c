"""What is said when something ends early, and with which exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoprune.errors import AutopruneError, StoppedError


@contextmanager
def stopped_in(folder: str) -> Iterator[None]:
    """Turn Ctrl-C into a StoppedError that says how to go on with the run of this folder."""
    try:
        yield
    except KeyboardInterrupt:
        if (Path(folder) / "ledger.sqlite").is_file():
            raise StoppedError(f"stopped; continue with: autoprune resume {folder}") from None
        raise StoppedError("stopped before the run had begun; start it again") from None


def outcome(error: BaseException, run: str = "") -> int:
    """Say on stderr what went wrong, in one line where the user can act on it, and give the exit code."""
    line, code = _verdict(error)
    if line is None:
        traceback.print_exception(error)
    else:
        print("autoprune:", " ".join(f"{run}: {line}".removeprefix(": ").split()), file=sys.stderr)
    return code


def _verdict(error: BaseException) -> tuple[str | None, int]:
    if isinstance(error, KeyboardInterrupt):
        return "stopped", StoppedError.exit_code
    ours = error.__cause__ if _of_hydra(error) else error  # Hydra wraps what a class it builds has raised
    if isinstance(ours, AutopruneError):
        return str(ours), ours.exit_code
    if _of_hydra(error):
        from autoprune.settings import explain

        line = explain(error)
    else:
        line = describe(error) if isinstance(error, OSError) else None
    return line, AutopruneError.exit_code if line else 1


def _of_hydra(error: BaseException) -> bool:
    return type(error).__module__.split(".")[0] in ("hydra", "omegaconf")


def describe(error: OSError) -> str:
    """A system error in one line: the file, then what is wrong with it."""
    if error.strerror is None:
        return str(error) or type(error).__name__
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
