"""Processes that a benchmark starts, looks for and kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

WORKER = "ray::Worker"  # what Ray calls the process of our worker class
RAYLET = "raylet/raylet "  # of the daemon of a node, in its command line


def fork(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> int:
    """`autoprune WORDS` in a copy of this process, which need not load the libraries again; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        from autoprune.cli import main

        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = main(list(words))
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def ended(pid: int) -> int | None:
    """The exit status of a child that has ended, negative for a signal; None while it runs."""
    found, status = os.waitpid(pid, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if found else None


def wait(pid: int, seconds: float) -> int | None:
    """The exit status, waiting at most so long."""
    deadline = time.monotonic() + seconds
    while (status := ended(pid)) is None and time.monotonic() < deadline:
        time.sleep(0.005)
    return status


def kill(pid: int) -> None:
    """End a process as the system does when memory runs out."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def descendants(pid: int) -> dict[int, str]:
    """Command lines of all processes below one, by their ids."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    rows = [line.split(None, 2) for line in listed.stdout.splitlines()]
    found: dict[int, str] = {}
    below = {pid}
    while below:
        below = {int(r[0]) for r in rows if int(r[1]) in below and int(r[0]) not in found}
        found |= {int(r[0]): r[2] for r in rows if int(r[0]) in below}
    return found


def workers(pid: int) -> list[int]:
    """The Ray workers below a process."""
    return sorted(p for p, command in descendants(pid).items() if command.startswith(WORKER))


def raylets(pid: int) -> list[int]:
    """The daemons of Ray's nodes below a process."""
    return sorted(p for p, command in descendants(pid).items() if RAYLET in command.split(" --")[0] + " ")


def gone(pids: Sequence[int], seconds: float) -> bool:
    """Whether all of them have ended within so long."""
    deadline = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
