"""Artifacts by digest: dear to build, shared by runs, seeds and workers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from autoprune.artifacts import SOURCE, Usage, keep_within
from autoprune.errors import SettingError
from autoprune.scratch import scratch_folder
from autoprune.space import digest


def default_root() -> Path:
    """`$AUTOPRUNE_CACHE`, else `autoprune` in the user's cache folder."""
    named = os.environ.get("AUTOPRUNE_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "autoprune"


class Cache:
    """Folders named by what their content depends on; a folder that exists is complete.

    `source` says in a few words what its artifacts are made from, for `autoprune cache`.
    """

    def __init__(self, root: Path | None = None, source: str = "") -> None:
        self.root = default_root() if root is None else root
        self._source = source
        self._usage = Usage(self.root)
        self.used: dict[Path, None] = {}  # what was asked for, in that order

    def folder(self, kind: str, inputs: Any, build: Callable[[Path], None]) -> Path:
        """The artifact of `kind` that depends on `inputs` (plain data), built first when it is missing.

        `build` fills an empty folder; it is renamed into place when done, so a crash leaves no half artifact and two
        processes building the same one agree; what a killed one left is swept away by the next. What this process has
        used stays while it lives. Raises SettingError
        when the cache cannot be written.
        """
        target = self.root / kind / digest(inputs)[:20]
        self.used[target] = None
        if self._usage.found(target):
            return target
        with self._scratch(target.parent) as scratch:
            try:
                build(scratch)
                if self._source:
                    (scratch / SOURCE).write_text(json.dumps(self._source))
                os.replace(scratch, target)
            except OSError:
                if not target.is_dir():  # else another process was faster: its artifact is as good
                    raise
        self._usage.found(target)
        with suppress(OSError):  # tidying must not fail a run
            keep_within(self.root, kind, target)
        return target

    @contextmanager
    def _scratch(self, parent: Path) -> Iterator[Path]:
        with ExitStack() as held:
            try:
                parent.mkdir(parents=True, exist_ok=True)
                folder = held.enter_context(scratch_folder(parent, ".building-"))
            except OSError as error:
                raise SettingError(
                    f"the artifact cache {self.root} cannot be written ({error.strerror}); set AUTOPRUNE_CACHE=FOLDER"
                ) from error
            yield folder
