"""Runs whose ladders are rebuilt, killed and resumed: they end as one that was left alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from autoprune.cache import default_root
from autoprune.front import Front
from autoprune.ledger import Ledger
from autoprune.run.supernets import SUPERNET

SCORES = ["name", "key", "kl_fitness", "kl_selection", "kl_test", "ladders"]


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """What a run's ledger notes of a kind."""
    with closing(Ledger.open(folder / "ledger.sqlite")) as ledger:
        return ledger.events(kind)


def killed_without_ladders(runs: SimpleNamespace, line: Sequence[str], whole: Front, share: float) -> int:
    """SIGKILL after a share of the records of `whole`, then even the rebuilt ladders go, then it is resumed.

    It must end like `whole`, ladders included. How many phases had rebuilt theirs when it was killed.
    """
    out = Path(next(word for word in line if word.startswith("out=")).removeprefix("out="))
    log = out.with_suffix(".log")
    pid = runs.fork(list(line), log)
    records = int(share * runs.progress(whole.folder))
    assert runs.signal_at(pid, out, records, signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    rebuilt = events(out, SUPERNET)
    for event in rebuilt:
        shutil.rmtree(default_root() / "ladders" / event["ladders"])
    status = os.waitpid(runs.fork(["resume", str(out)], log), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
    assert runs.ordered(out) == runs.ordered(whole.folder)
    pd.testing.assert_frame_equal(Front(out).frame()[SCORES], whole.frame()[SCORES])
    specs, wanted = ([e["spec"] for e in events(where, SUPERNET)] for where in (out, whole.folder))
    assert specs == wanted
    return len(rebuilt)
