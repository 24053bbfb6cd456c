"""Errors a user can act on: each says what was asked, what is allowed and what would work."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AutopruneError(Exception):
    """A user's mistake or a refusal: one line, exit code 2."""

    exit_code = 2


class SettingError(AutopruneError):
    """A setting has an unknown name or a value that is not allowed."""


class UnboundedError(SettingError):
    """A method that works at one budget was given none."""


class SpaceError(AutopruneError):
    """A candidate or plan does not belong to the space, or the space cannot be built."""


class InfeasibleError(SpaceError):
    """No plan meets a constraint; the message names the bound and the smallest feasible value."""


class UnsupportedModelError(AutopruneError):
    """The model cannot be read, or no adapter serves its family."""


class DataError(AutopruneError):
    """A corpus is missing, empty or too short."""


class LedgerError(AutopruneError):
    """A run folder cannot be read, or holds the ledger of something else."""


class ExportError(AutopruneError):
    """A checkpoint could not be written, or does not equal the plan it was made from."""

    exit_code = 1


class MeasurementError(AutopruneError):
    """A measurement was refused, for example because the machine is busy; nothing was recorded."""

    exit_code = 3


class KernelError(AutopruneError):
    """The kernels cannot be compiled, or there is none for a matrix."""


class StoppedError(AutopruneError):
    """The run stopped early and can be resumed."""

    exit_code = 3


LISTED = 60  # names in one line


def nearest(word: str, allowed: Iterable[str]) -> str:
    """The tail of an error: the nearest allowed name, or the list of them, of very many the first."""
    names = sorted(str(a) for a in allowed)
    hit = difflib.get_close_matches(str(word), names, 1, 0.5)
    if hit:
        return f"; did you mean {hit[0]!r}?"
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"; allowed: {', '.join(names[:LISTED])}{more}"
