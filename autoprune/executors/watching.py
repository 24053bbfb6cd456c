"""Notices that the head of a Ray has gone, before Ray does: it waits for a minute, then ends our process from C++."""

from __future__ import annotations

import socket
import threading
import time

PULSE = 1.0  # seconds between two looks; a head that is started anew needs several
SILENT = 20.0  # seconds without an answer after which a machine counts as off


class Watch:
    """Looks whether somebody listens at HOST:PORT, once a `PULSE`, until it is stopped or nobody does."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.lost = ""  # why the head is lost; empty while it is there
        self._at = (host.strip("[]"), int(port))
        self._heard = time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="ray watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no longer."""
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self.lost and not self._stop.wait(PULSE):
            try:
                socket.create_connection(self._at, PULSE).close()
                self._heard = time.monotonic()
            except ConnectionRefusedError:
                self.lost = "nobody listens there any more"
            except OSError as error:
                silent = time.monotonic() - self._heard
                self.lost = f"no answer for {silent:.0f} s: {error}" if silent > SILENT else ""
