"""Notices that the head of a Ray or its daemon here has gone, before Ray does: it waits, then ends us from C++.

Only sockets are asked. Asking Ray itself would wait for a head that has gone, and when another one answers in its
place, Ray ends the process that asked.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Mapping

PULSE = 1.0  # seconds between two looks; a head that is started anew needs several
SILENT = 20.0  # seconds without an answer after which a machine counts as off


class Watch:
    """Looks whether somebody listens at every HOST:PORT, once a `PULSE`, until it is stopped or nobody does."""

    def __init__(self, addresses: Mapping[str, str]) -> None:
        """`addresses`: what it means that nobody listens there any more."""
        self.lost = ""  # why one is lost; empty while all are there
        self._at = {self._pair(address): means for address, means in addresses.items()}
        self._heard = dict.fromkeys(self._at, time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ray watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stop.set()
        self._thread.join()

    @staticmethod
    def _pair(address: str) -> tuple[str, int]:
        host, _, port = address.rpartition(":")
        return host.strip("[]"), int(port)

    def _work(self) -> None:
        while not self.lost and not self._stop.wait(PULSE):
            self.lost = next(filter(None, map(self._look, self._at)), "")

    def _look(self, at: tuple[str, int]) -> str:
        """Why nobody is there any more, or nothing."""
        try:
            socket.create_connection(at, PULSE).close()
        except ConnectionRefusedError:
            return self._at[at]
        except OSError as error:
            silent = time.monotonic() - self._heard[at]
            return f"no answer for {silent:.0f} s: {error}" if silent > SILENT else ""
        self._heard[at] = time.monotonic()
        return ""
