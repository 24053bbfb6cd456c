"""What a benchmark has searched or measured is kept in a work folder and read again, so a stopped one goes on."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from autoprune import __version__
from autoprune.space import digest

Row = dict[str, float]


def work_folder(root: str | Path, model: str, *settings: Any) -> Path:
    """The folder of one model under these settings; other settings, and other versions of autoprune, have another."""
    return Path(root).absolute() / f"{Path(model).name}-{digest([__version__, model, *settings])[:8]}"


class Work:
    """Rows of figures in such a folder, a file each."""

    def __init__(self, root: str | Path, model: str, settings: Any) -> None:
        self.folder = work_folder(root, model, settings)

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
