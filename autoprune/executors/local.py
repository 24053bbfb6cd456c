"""A Ray of our own on this machine: quiet, gone when we are; the runs of a sweep share one."""

from __future__ import annotations

import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from autoprune.errors import SettingError
from autoprune.scratch import scratch_folder

ATTEMPTS, SLOW = 3, "timed out during startup"
# a Python process for each CPU, of which none is ever used: workers have an environment of their own
UNUSED = {"RAY_prestart_worker_first_driver": "0"}
STORE = 80 << 20  # bytes; Ray wants 75 MB at least, and results are small
# characters of a temporary folder: Linux takes 107 of a socket's path, Ray's own below it are up to
# `/autoprune-UID/ray-12345678/session_2026-01-02_03-04-05_123456_1234567/sockets/plasma_store`
LONGEST = 107 - len(
    "/autoprune-/ray-12345678/session_2026-01-02_03-04-05_123456_1234567/sockets/plasma_store"
)


class Shared:
    """One Ray for run after run: the first that needs one starts it, one that needs more CPUs starts it anew."""

    def __init__(self) -> None:
        self._cpus = 0
        self._keeper: threading.Thread | None = None
        self._error: BaseException | None = None

    def provide(self, cpus: int) -> None:
        """Have one with so many CPUs, or raise what Ray raises."""
        if self._keeper is not None and self._cpus >= cpus:
            return
        self.end()
        self._cpus, self._error = cpus, None
        self._ready, self._closing = threading.Event(), threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="shared ray", daemon=True)
        self._keeper.start()
        self._ready.wait()
        if self._error is not None:
            self.end()
            raise self._error

    def end(self) -> None:
        """End it, if there is one."""
        if self._keeper is not None:
            self._closing.set()
            self._keeper.join()
            self._keeper = None

    def _keep(self) -> None:
        with ExitStack() as held:
            try:
                _start(held, self._cpus)
            except BaseException as error:  # told by whoever asked for it
                self._error = error
            self._ready.set()
            self._closing.wait()  # Linux ends Ray's processes with the *thread* that started them


_shared: Shared | None = None  # of this process, while a sweep lasts: executors are made by configuration


@contextmanager
def one_ray() -> Iterator[None]:
    """Inside, all runs that start a Ray share one, which ends with the context."""
    global _shared
    before, _shared = _shared, Shared()
    try:
        yield
    finally:
        _shared.end()
        _shared = before


def start(held: ExitStack, cpus: int) -> None:
    """A Ray with so many CPUs that ends with `held`, or the one of the sweep."""
    import ray

    if _shared is not None:
        _shared.provide(cpus)
    elif not ray.is_initialized():  # else it is the caller's own, and stays
        _start(held, cpus)


def leave() -> None:
    """End the sweep's Ray: the next run attaches to another one."""
    if _shared is not None:
        _shared.end()


def _start(held: ExitStack, cpus: int) -> None:
    """Ray gives its own processes 30 s, which a busy machine may need twice."""
    for left in range(ATTEMPTS - 1, -1, -1):
        with ExitStack() as attempt:
            try:
                _begin(attempt, cpus)
            except Exception as error:
                if left and SLOW in str(error):
                    continue
                raise
            held.enter_context(attempt.pop_all())
            return


def _begin(held: ExitStack, cpus: int) -> None:
    import ray

    for name, value in UNUSED.items():
        os.environ.setdefault(name, value)
    folder = held.enter_context(scratch_folder(_temporary(), "ray-"))
    held.callback(ray.shutdown)
    ray.init(
        address="local",  # None would attach to whatever runs here
        num_cpus=cpus,
        object_store_memory=STORE,
        include_dashboard=False,
        _temp_dir=str(folder),
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _temporary() -> Path:
    """A folder of this user's for what Ray writes while it runs."""
    root, user = tempfile.gettempdir(), str(os.getuid())
    folder = Path(root if len(root + user) <= LONGEST else "/tmp") / f"autoprune-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise SettingError(f"{folder} belongs to somebody else; name another folder in TMPDIR")
    return folder
