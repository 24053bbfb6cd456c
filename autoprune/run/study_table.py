"""The table of a study: settings that must stay the same, and rows that are on disk as soon as they are known."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autoprune.errors import LedgerError, SettingError
from autoprune.report.files import replace as replaced
from autoprune.report.files import write_text


@dataclass(frozen=True)
class StudyTable:
    """A CSV of `columns`; `numbers` says which hold numbers, read back to the last digit. All else is text."""

    path: Path
    columns: Sequence[str]
    numbers: Mapping[str, type]

    def read(self) -> list[dict[str, Any]]:
        """What is done so far, in order; raises LedgerError on a file that is not such a table."""
        if not self.path.is_file():
            return []
        try:
            frame = pd.read_csv(self.path, dtype=str, keep_default_na=False).astype(dict(self.numbers))
            return [{str(k): row[k] for k in self.columns} for row in frame.to_dict("records")]
        except (ValueError, KeyError) as error:
            raise LedgerError(f"{self.path} cannot be read: {' '.join(str(error).split())}") from error

    def write(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Put these rows in place of the ones before, at once."""
        frame = self.frame(rows)
        replaced(self.path, lambda temporary: frame.to_csv(temporary, index=False))

    def frame(self, rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
        """Rows in the order of the columns."""
        return pd.DataFrame(list(rows), columns=list(self.columns))


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise SettingError when the folder of `path` holds a study with others; else store them."""
    if not path.is_file():
        write_text(path, json.dumps(settings, indent=2) + "\n")
        return
    try:
        stored = dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise LedgerError(f"{path} cannot be read: {error}") from error
    for name, value in settings.items():
        if stored.get(name) != value:
            raise SettingError(
                f"--to {path.parent} holds a study with {name}={stored.get(name)}, here it is {value}; "
                "name another folder"
            )
