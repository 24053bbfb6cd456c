"""A Ray head on this machine, started by the first job and ended on request; nothing else's Ray is touched."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

from autoprune.errors import SettingError
from autoprune.executors.local import UNUSED
from autoprune.executors.submission.jobs import EXCLUDES, RayJobs, check_installed

STATE, TOKEN, LOG = "head.json", "token", "head.log"
PATIENCE = 60.0  # seconds until a head answers, or has gone
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "token", "PYTHONUNBUFFERED": "1", **UNUSED}
STORE = 80 << 20  # bytes


class Local(RayJobs):
    """Jobs of a Ray head on this machine, which the first one starts; it stays until `submit cluster=local --down`.

    cpus: processors that the head offers, null for all; folder: where it keeps its state, null for one in the
    temporary folder; working_dir: folder whose copy the job runs in; excludes: what of it stays here, as in
    .gitignore; pip: packages that the job needs beside the ones here; env: environment variables of the job.
    """

    def __init__(
        self,
        cpus: int | None = None,
        folder: str | None = None,
        working_dir: str = ".",
        excludes: Sequence[str] = EXCLUDES,
        pip: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(None, working_dir, excludes, pip, env, python=sys.executable)
        if cpus is not None and cpus < 1:
            raise SettingError(f"cluster.cpus={cpus} must be at least 1, or null")
        self._cpus = cpus
        self._home = Path(folder or f"/tmp/autoprune-{os.getuid()}/head").absolute()

    def address(self) -> str:
        """That of the head that runs; one is started where none does."""
        if self._address is None:
            state = self._running() or self._start()
            self._token_file = str(self._home / TOKEN)
            self._address = str(state["address"])
        return self._address

    def down(self) -> bool:
        """End the head and its jobs; False when there is none."""
        state = self._running()
        if state is None:
            return False
        _end(int(state["pid"]), str(self._home))
        (self._home / STATE).unlink(missing_ok=True)
        return True

    def _running(self) -> dict[str, Any] | None:
        """What is known of our head, if it lives: its process still has our folder in its command line."""
        try:
            state = dict(json.loads((self._home / STATE).read_text(encoding="utf-8")))
            alive = str(self._home) in Path(f"/proc/{state['pid']}/cmdline").read_text(encoding="utf-8")
        except (OSError, ValueError, KeyError):
            return None
        return state if alive else None

    def _start(self) -> dict[str, Any]:
        check_installed()
        self._home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._home.stat().st_uid != os.getuid():
            raise SettingError(f"{self._home} belongs to somebody else; name another in cluster.folder")
        token = self._home / TOKEN
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        gcs, dashboard, agent, client = _free_ports(4)
        words = [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        words += [f"--ray-client-server-port={client}", f"--temp-dir={self._home / 'ray'}"]
        words += [f"--num-cpus={self._cpus}"] if self._cpus else []
        fixed = [
            "--head",
            "--block",
            "--include-dashboard=true",
            "--node-ip-address=127.0.0.1",
            "--disable-usage-stats",
        ]
        command = [
            sys.executable,
            "-m",
            "ray.scripts.scripts",
            "start",
            *fixed,
            f"--object-store-memory={STORE}",
        ]
        environment = {**os.environ, **QUIET, "RAY_AUTH_TOKEN_PATH": str(token), "PYTHONPATH": _path()}
        with (self._home / LOG).open("wb") as log:
            head = subprocess.Popen(
                [*command, *words], stdout=log, stderr=log, env=environment, start_new_session=True
            )
        state = {"pid": head.pid, "address": f"http://127.0.0.1:{dashboard}"}
        (self._home / STATE).write_text(json.dumps(state))
        self._wait(head, str(state["address"]))
        return state

    def _wait(self, head: subprocess.Popen[bytes], address: str) -> None:
        """Until the head takes jobs; raises SettingError when it does not."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and head.poll() is None:
            with suppress(OSError), urlopen(f"{address}/api/version", timeout=2):
                return
            with (
                suppress(OSError),
                socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), 1),
            ):
                return  # it answers, and wants the token
            time.sleep(0.2)
        lines = (self._home / LOG).read_text(errors="replace").splitlines()
        last = next((s.strip() for s in reversed(lines) if s.strip()), "no word from it")
        _end(head.pid, str(self._home))
        raise SettingError(f"cluster=local: Ray's head did not start ({last}); see {self._home / LOG}")


def _path() -> str:
    """PYTHONPATH with this very autoprune in it: jobs run elsewhere, and it need not be installed."""
    import autoprune

    found = [str(Path(autoprune.__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(p for p in found if p)


def _free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for each in held:
        each.bind(("127.0.0.1", 0))
    ports = [int(each.getsockname()[1]) for each in held]
    for each in held:
        each.close()
    return ports


def _end(head: int, folder: str) -> None:
    """End a head, and what it started: whatever names its folder, and would otherwise outlive it."""
    with suppress(ProcessLookupError, ChildProcessError):
        os.kill(head, signal.SIGTERM)
    deadline = time.monotonic() + PATIENCE / 6
    while (left := _naming(folder)) and time.monotonic() < deadline:
        with suppress(ChildProcessError):
            os.waitpid(head, os.WNOHANG)
        time.sleep(0.1)
    for pid in left:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while _naming(folder) and time.monotonic() < deadline + PATIENCE / 6:
        with suppress(ChildProcessError):
            os.waitpid(head, os.WNOHANG)
        time.sleep(0.1)


def _naming(folder: str) -> list[int]:
    """Processes of this user whose command line or environment names a folder, but for this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes()
            if words and f"{folder}/ray".encode() in words:
                found.append(int(entry.name))
    return found
