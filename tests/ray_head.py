"""A Ray that a test starts by `ray start --head`, and ends: all of it, and nothing else."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path


def free_port() -> int:
    """A port where nobody listens."""
    with closing(socket.socket()) as at:
        at.bind(("127.0.0.1", 0))
        return int(at.getsockname()[1])


def head_port() -> int:
    """One for a head: below are the workers' own."""
    return next(p for p in iter(free_port, 0) if p > 20_000)


@contextmanager
def head(folder: Path, port: int, access: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A head in a session of its own, so that all of it can be ended; `access`: its variables about tokens."""
    words = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}"),
        *("--num-cpus=1", "--include-dashboard=false", "--object-store-memory=80000000"),
    ]
    before = set(folder.glob("session_2*"))
    started = subprocess.Popen(
        [*words, f"--temp-dir={folder}"],
        env={**os.environ, **access, "RAY_USAGE_STATS_ENABLED": "0"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 60
        while not any(any(s.glob("sockets/raylet*")) for s in set(folder.glob("session_2*")) - before):
            assert started.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield started
    finally:
        switch_off(started)


def switch_off(started: subprocess.Popen[bytes]) -> None:
    """As when its machine is."""
    with suppress(ProcessLookupError):
        os.killpg(started.pid, signal.SIGKILL)
    started.wait(60)
