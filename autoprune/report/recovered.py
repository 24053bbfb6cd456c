"""recovered.csv of a run folder: what short recovery made of its plans, apart from the unrecovered figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from autoprune.errors import LedgerError
from autoprune.report.files import replace
from autoprune.report.rows import RECOVERED

FILE = "recovered.csv"
COLUMNS = ("key", "recovery", "recovery_steps", "recovery_tokens", *RECOVERED)


def record(folder: Path, row: Mapping[str, Any]) -> None:
    """Add a row with `COLUMNS`, atomically; an earlier one of the same key is replaced."""
    old = read(folder)
    frame = pd.concat([old[old["key"] != row["key"]], pd.DataFrame([row], columns=list(COLUMNS))])
    replace(Path(folder) / FILE, lambda path: frame.to_csv(path, index=False))


def read(folder: Path) -> pd.DataFrame:
    """All rows, none when nothing was recovered; raises LedgerError when the file is not ours."""
    path = Path(folder) / FILE
    if not path.is_file():
        return pd.DataFrame(columns=list(COLUMNS)).astype({"key": object})
    try:
        frame = pd.read_csv(path, dtype={"key": str, "recovery": str})
    except (ValueError, OSError) as error:
        raise LedgerError(f"{path} cannot be read: {str(error).splitlines()[0]}") from error
    if missing := [c for c in COLUMNS if c not in frame.columns]:
        raise LedgerError(f"{path} has no column {missing[0]!r}")
    numbers = [c for c in COLUMNS if c not in ("key", "recovery")]
    try:
        frame[numbers] = frame[numbers].apply(pd.to_numeric)
    except ValueError as error:
        raise LedgerError(f"{path} holds words among its numbers: {error}") from error
    return frame[list(COLUMNS)]


def beside(rows: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The rows with the recovered figures of their keys, in columns of their own."""
    found = read(folder).set_index("key")
    if found.empty:
        return rows
    figures = {column: rows["key"].map(found[column]).astype(float) for column in RECOVERED}
    return rows.assign(**figures)
