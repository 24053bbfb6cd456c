"""A Ray of our own, or one that runs already, and the workers on it; quiet, and gone when we are."""

from __future__ import annotations

import logging
import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import Any

from autoprune.errors import AutopruneError, SettingError, StoppedError
from autoprune.executors import local
from autoprune.executors.attaching import check_address
from autoprune.executors.offers import Demand, check_room
from autoprune.executors.watching import Watch
from autoprune.executors.worker import Worker

QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
# glibc by itself returns every plan's logits to the system, and fetching them again takes a tenth of the time
KEPT = str(1 << 30)  # bytes
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": KEPT, "MALLOC_TRIM_THRESHOLD_": KEPT}
POOLS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


class Cluster:
    """Starts, and hires its first workers, in a thread: the caller can load the model meanwhile."""

    def __init__(
        self,
        workers: int,
        threads: int,
        address: str | None,
        demand: Demand | None = None,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        """`demand` is of one worker, by default a CPU for each of its threads; `say` hears what a user should know."""
        self._workers, self._threads, self._address = workers, threads, address
        self._demand, self._say = demand or Demand(threads), say
        self._ready, self._closing = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._held = ExitStack()
        self._watch: Watch | None = None
        self._hired: list[Any] = []
        self._keeper = threading.Thread(target=self._keep, name="ray", daemon=True)
        self._keeper.start()

    @property
    def where(self) -> str:
        """What it is called in messages."""
        if self._address is None:
            return "the Ray started here"
        return f"the Ray at executor.address={self._address}"

    def check(self) -> None:
        """Raise StoppedError when the head of the Ray has gone, or its daemon here, and with it all workers."""
        if self._watch is not None and self._watch.lost:
            raise StoppedError(f"executor=ray: {self.where} has gone ({self._watch.lost})")

    def workers(self) -> list[Any]:
        """Handles of the first workers, once Ray is up; raises what went wrong."""
        self._ready.wait()
        if isinstance(self._error, AutopruneError):
            raise self._error
        if self._error is not None:
            reason = " ".join(str(self._error).split())
            raise StoppedError(f"executor=ray: Ray did not start ({reason})") from self._error
        return list(self._hired)

    def hire(self, kind: type[Any] = Worker, demand: Demand | None = None) -> Any:
        """One more worker, or another kind of actor; it starts when a node has room for it."""
        import ray

        pools = {name: str(self._threads) for name in POOLS} | {"TOKENIZERS_PARALLELISM": "false"}
        environment = {"env_vars": pools | ALLOCATOR}
        options = {**(demand or self._demand).options(), "max_restarts": 0, "runtime_env": environment}
        worker = ray.remote(kind).options(**options).remote()
        self._hired.append(worker)
        return worker

    def dismiss(self, worker: Any) -> None:
        """Make sure that a worker is gone."""
        import ray

        self._hired.remove(worker)
        with suppress(Exception):  # it is dead already
            ray.kill(worker)

    def put(self, part: bytes) -> Any:
        """A reference to bytes in the object store."""
        import ray

        try:
            return ray.put(part)
        except ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())
            raise StoppedError(
                f"executor=ray: artifacts do not fit into the object store ({reason[:200]}); give Ray a larger one, "
                "or let all nodes see AUTOPRUNE_CACHE and set executor.artifacts=shared"
            ) from error

    def stop(self) -> None:
        """End the workers, and Ray when it is ours."""
        self._ready.wait()
        if self._watch is None or not self._watch.lost:  # else nobody is there to be told
            for worker in list(self._hired):
                self.dismiss(worker)
        self._held.close()
        self._closing.set()
        self._keeper.join()

    def _keep(self) -> None:
        try:
            self._start()
            for _ in range(self._workers):
                self.hire()
        except BaseException as error:  # told by whoever asks for the workers
            self._error = error
        self._ready.set()
        self._closing.wait()  # Linux ends Ray's processes with the *thread* that started them

    def _start(self) -> None:
        import ray

        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        if self._address is not None:
            self._attach()
        else:
            local.start(self._held, max(1, math.ceil(self._workers * self._demand.cpus)))
        nodes = ray.nodes()
        self._watch = Watch(_listening(nodes))
        self._held.callback(self._watch.stop)
        room = check_room(self._demand, self._workers, nodes, self.where)
        if room < self._workers:
            self._say(
                f"{self.where} has room for {room} of {self._workers} workers; the others start when nodes join it"
            )

    def _attach(self) -> None:
        import ray

        assert self._address is not None
        local.leave()
        if ray.is_initialized():  # it is the caller's own, and stays
            return
        check_address(self._address)
        try:
            ray.init(address=self._address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
            line = next((s.strip() for s in str(error).splitlines() if s.strip()), type(error).__name__)
            raise SettingError(f"executor.address={self._address}: no Ray answers there ({line})") from error
        self._held.callback(ray.shutdown)


def _listening(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Where the head and the daemon of our own node listen, and what it means when they do no longer."""
    import ray

    here = ray.get_runtime_context()
    found = {str(here.gcs_address): "nobody listens there any more"}
    for node in nodes:
        if node["NodeID"] == here.get_node_id():  # without its daemon Ray waits forever
            found[f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"] = (
                "its daemon on this machine has ended"
            )
    return found
