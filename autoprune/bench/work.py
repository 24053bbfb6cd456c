"""Rows that a benchmark has measured, kept in a work folder: what is there is read, so a stopped run goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune.space import digest

Row = dict[str, float]


class Work:
    """The rows of one model under the same settings, a file each; other settings have another folder."""

    def __init__(self, root: str | Path, model: str, settings: Any) -> None:
        self.folder = Path(root) / f"{Path(model).name}-{digest(settings)[:8]}"

    def row(self, name: str, measure: Callable[[], Mapping[str, float]]) -> Row:
        """The figures of a row by column, measured when there are none yet."""
        file = self.folder / f"{name}.json"
        if not file.is_file():
            found = dict(measure())
            self.folder.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps(found), encoding="utf-8")
            os.replace(draft, file)
        kept: Row = json.loads(file.read_text(encoding="utf-8"))
        return kept
