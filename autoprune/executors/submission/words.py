"""A command line as it must read on a cluster, where the job's folder is a copy that goes away."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Sequence
from pathlib import Path

from autoprune.errors import SettingError

OWN_OUT = (
    "resume",
    "report",
    "leaderboard",
    "export",
    "recover",
    "profile",
)  # commands that name folders as words


def for_job(words: Sequence[str], results: str | None) -> list[str]:
    """The words with every folder of results absolute, and workers taken from the job's own cluster.

    `results`: the folder that relative ones are in, on storage that the whole cluster sees; None: this one. Raises
    SettingError when there is nothing to run.
    """
    if not words:
        raise SettingError(
            "submit: nothing to run; write it after --, as in: -- model=docs-llama search=auto"
        )
    root = Path(results or Path.cwd()).absolute()
    if words[0] in OWN_OUT:
        return [words[0], *(_absolute(word, root) for word in words[1:])]
    if "=" not in words[0] and not words[0].startswith("-"):
        return list(words)
    found = [f"out={root / w.partition('=')[2]}" if w.startswith("out=") else w for w in words]
    if not any(w.startswith("out=") for w in found):
        found.append(f"out={root / 'results' / time.strftime('%Y-%m-%d_%H-%M-%S')}")
    if "executor=ray" in found and not any(w.startswith("executor.address=") for w in found):
        found.append("executor.address=auto")
    return found


def entry(python: str, words: Sequence[str]) -> str:
    """The shell line of a job."""
    from autoprune import __version__

    return shlex.join([python, "-m", "autoprune.executors.submission.job", __version__, *words])


def folder_of(words: Sequence[str]) -> str | None:
    """Where the job's run will be."""
    if words[0] == "resume":
        return next((w for w in words[1:] if not w.startswith("-")), None)
    return next((w.partition("=")[2] for w in words if w.startswith("out=")), None)


def _absolute(word: str, root: Path) -> str:
    """A word that names something under the root, in full."""
    if word.startswith("-") or "=" in word or os.path.isabs(word):
        return word
    return str(root / word) if os.sep in word or (root / word).exists() else word
