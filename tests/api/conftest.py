"""One finished run of a tiny model, shared by many tests, and ways to start others."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import autoprune
from autoprune.cli import main
from autoprune.front import Front
from autoprune.hardware import interruptions, sentinel
from autoprune.ledger import Ledger
from autoprune.run import outputs
from tests import tiny

TOKENS = 12_000
SETTINGS = (
    *("window=32", "calibration.tokens=1024", "selection_windows=12", "test_windows=12", "finalists=12"),
    *("front_points=4", "uniform=[0.8,0.5]", "quiet=true"),
    *(
        "latency.rounds=5",
        "latency.prefill_tokens=8",
        "latency.context=8",
        "latency.decode_steps=1",
        "latency.stale=keep",
    ),
)
NSGA2 = ("search.windows=4", "search.population=12")


@dataclass(frozen=True)
class Given:
    """A model and a text, and how to search with them."""

    model: Path
    text: Path

    def search(self, out: Path, *settings: str, model: Path | None = None, **named: Any) -> Front:
        """A small search in this process."""
        chosen = {"tokens": TOKENS, "data": self.text, "search": "nsga2", **named}
        small = () if "search" in named else NSGA2
        return autoprune.search(
            model or self.model, out=out, settings=(*SETTINGS, *small, *settings), **chosen
        )

    def line(self, out: Path, *settings: str) -> list[str]:
        """The same as words of a command line."""
        named = [f"model={self.model}", f"data={self.text}", f"tokens={TOKENS}", f"out={out}"]
        return [*named, "search=nsga2", *SETTINGS, *NSGA2, *settings]


@pytest.fixture(scope="session")
def given(tmp_path_factory: pytest.TempPathFactory) -> Given:
    """A random model of three blocks and documentation as text."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "text.txt").write_text(tiny.text())
    return Given(tiny.save(tiny.llama(noise=0.1), folder / "model"), folder / "text.txt")


@contextmanager
def patience() -> Iterator[None]:
    """Times are measured on however busy a machine: these tests look at the way they take, not at them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentinel, "CONTENDED", float("inf"))
        patch.setattr(sentinel, "DIRTY", float("inf"))
        patch.setattr(interruptions, "TOLERATED", float("inf"))
        yield


@pytest.fixture(autouse=True)
def patient() -> Iterator[None]:
    """Patience during a test, and no longer."""
    with patience():
        yield


@pytest.fixture(scope="session")
def front(given: Given, tmp_path_factory: pytest.TempPathFactory) -> Front:
    """A finished run."""
    with patience():
        return given.search(tmp_path_factory.mktemp("runs") / "first")


@pytest.fixture
def no_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out best/: it starts a fresh process, and one run that does is enough."""
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)


def ordered(folder: Path) -> list[tuple[Any, ...]]:
    """The ordered columns of a run's ledger."""
    with closing(Ledger.open(folder / "ledger.sqlite")) as ledger:
        return ledger.ordered()


def progress(folder: Path) -> int:
    """Results and held-out scores that a run has recorded so far."""
    path = folder / "ledger.sqlite"
    if not path.is_file():
        return 0
    try:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as db:
            counts = [
                db.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in ("results", "finals")
            ]
    except sqlite3.Error:  # the tables are not there yet
        return 0
    return sum(counts)


def start(words: list[str], log: Path) -> int:
    """A command line in a fresh process, whose id it gives; what it says goes to `log`."""
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    with log.open("wb") as out:
        command = [sys.executable, "-m", "autoprune", *words]
        return subprocess.Popen(command, stdout=out, stderr=out, env=environment).pid


def fork(words: list[str], log: Path, before: Callable[[], object] = lambda: None) -> int:
    """The same in a copy of this process, which need not import everything again; its id. `before` runs there first."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        before()
        code = main(words)
        sys.stderr.flush()
    finally:
        os._exit(code)


def signal_at(pid: int, folder: Path, records: int, number: int) -> int:
    """Send a signal once the run has recorded that much; the process's exit status."""
    deadline = time.monotonic() + 120
    while progress(folder) < records and time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(pid, number)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture(scope="session")
def runs() -> SimpleNamespace:
    """The helpers of this file; tests cannot import a conftest."""
    return SimpleNamespace(ordered=ordered, progress=progress, start=start, fork=fork, signal_at=signal_at)


@contextmanager
def interrupted_at_step(number: int) -> Iterator[None]:
    """Ctrl-C in the step of distillation that is the `number`th from here on."""
    from autoprune.recovery.distill import Distiller

    real, calls = Distiller._step, [0]

    def step(self: Distiller, at: int) -> float:
        calls[0] += 1
        if calls[0] == number:
            raise KeyboardInterrupt
        return real(self, at)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Distiller, "_step", step)
        yield


@pytest.fixture
def at_step() -> Callable[[int], AbstractContextManager[None]]:
    """Interrupts a distillation; see `interrupted_at_step`."""
    return interrupted_at_step
