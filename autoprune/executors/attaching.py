"""Attaching to a Ray that runs already: told within seconds, in one line, why it cannot be done.

Ray's own client waits for minutes for a head that is not there, asks once a second forever with a wrong token, and
writes about both to stderr from C++. So another process tries first.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

from autoprune.errors import SettingError

PATIENCE = 5.0  # seconds for a host to answer
ATTEMPT = 40.0  # seconds for Ray to let us in; a busy machine needs ten
REFUSED = ("InvalidAuthToken", "Unauthenticated", "AuthenticationError")
CURRENT = "/tmp/ray/ray_current_cluster"  # where `ray start` notes the cluster of this machine
TRY = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False, logging_level='ERROR'); ray.shutdown()"
HINT = "start one with `ray start --head`, or leave the setting out"
TOKEN = (
    "it asks for a token: set RAY_AUTH_MODE=token and give its head's token in RAY_AUTH_TOKEN, "
    "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"
)


def check_address(address: str) -> None:
    """Raise SettingError when no Ray answers at `auto` or HOST:PORT, or when it does not let us in."""
    if address.startswith("ray://"):
        raise SettingError(
            f"executor.address={address} is Ray's remote client, which is not supported; run on a node of the "
            "cluster with address=auto, or hand the run in with `autoprune submit`"
        )
    found = _current() if address == "auto" else address
    if found is not None:
        _check_port(address, found)
    said = _attempt(address)
    if said is not None:
        raise SettingError(f"executor.address={address}: {said}")


def _current() -> str | None:
    """What `auto` stands for, as far as we can tell."""
    if named := os.environ.get("RAY_ADDRESS"):
        return named
    with suppress(OSError):
        return Path(CURRENT).read_text().strip() or None
    return None


def _check_port(address: str, at: str) -> None:
    """Raise SettingError unless somebody listens there."""
    host, _, port = at.rpartition(":")
    if not host or not port.isdigit():
        raise SettingError(f"executor.address={address} is no address; write auto or HOST:PORT")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SettingError(
            f"executor.address={address}: no Ray answers at {at} ({reason}); {HINT}"
        ) from error


def _attempt(address: str) -> str | None:
    """Attach in another process; what is wrong, or None."""
    process = subprocess.Popen(
        [sys.executable, "-c", TRY, address], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    clock = threading.Timer(ATTEMPT, process.kill)
    clock.start()
    lines: list[str] = []
    try:
        for line in process.stderr:
            lines.append(line.strip())
            if any(word in line for word in REFUSED):
                return TOKEN
        return None if process.wait() == 0 else _reason(lines)
    finally:
        clock.cancel()
        process.kill()
        process.wait()
        process.stderr.close()


def _reason(lines: list[str]) -> str:
    """In one line, from what Ray wrote: its versions, or the last words of its error."""
    text = " ".join(" ".join(lines).split())
    if "Version mismatch" in text:
        found = text[text.index("Version mismatch") :].removeprefix("Version mismatch:").strip()
        return f"Ray or Python is another version there: {found}"
    errors = [line for line in lines if ": " in line and not line.startswith(("[", "File "))]
    said = errors[-1].partition(": ")[2] if errors else f"no answer within {ATTEMPT:.0f} s"
    return f"no Ray answers there ({said}); {HINT}"
