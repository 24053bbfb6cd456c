"""Copies of a process that has the libraries loaded and has never met Ray, whose threads no fork survives."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

LOADED = ["autoprune.run.pipeline", "autoprune.run.remote", "pandas", "ray"]


def start(log: Path, access: Mapping[str, str], function: Callable[..., object], *given: Any) -> BaseProcess:
    """A copy that calls an importable function, with these variables; what it prints goes to `log`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LOADED)
    # the copied process is as old as the first test that needed one, so the variables of now are handed over
    made = context.Process(target=_call, args=(log, {**os.environ, **access}, function, given))
    made.start()
    return made


def command(words: Sequence[str], before: Callable[[], object] = bool) -> None:
    """`autoprune WORDS` after `before`; for `start`."""
    from autoprune.cli import main

    before()
    sys.exit(main(list(words)))


def _call(
    log: Path, environment: Mapping[str, str], function: Callable[..., object], given: Sequence[Any]
) -> None:
    os.environ.update(environment)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    try:
        function(*given)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
