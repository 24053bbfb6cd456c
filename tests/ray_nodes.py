"""A cluster of two nodes on this machine, which a test starts and ends: these nodes, and no other Ray's."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from autoprune.bench.processes import descendants

STORE = 80 << 20
# a node that is gone refuses at once, one that is merely slow has 10 s to answer: so looks may be frequent
HEALTH = {"health_check_initial_delay_ms": 500, "health_check_period_ms": 300}


class Nodes:
    """A head and what joins it; only these are ever ended."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": HEALTH})
        self.address = str(self._cluster.address)
        self.second = self.join()

    def join(self) -> Any:
        """One more node, with resources that the head lacks."""
        offers = {"fast": 1, "timing": 1}
        return self._cluster.add_node(num_cpus=1, resources=offers, object_store_memory=STORE)

    def replace(self) -> None:
        """The second node goes as when a machine is switched off, and another one like it joins."""
        self._cluster.remove_node(self.second, allow_graceful=False)
        self.second = self.join()

    def close(self) -> None:
        """End all of them."""
        self._cluster.shutdown()


def rays() -> set[int]:
    """Ray's processes below this one."""
    words = ("raylet/raylet", "gcs_server", "ray::")
    return {pid for pid, line in descendants(os.getpid()).items() if any(w in line for w in words)}


def gone(pids: set[int], seconds: float = 60) -> bool:
    """Whether all of these processes have ended within so long; who nobody waited for has, too."""
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if _runs(pid)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return not left


def _runs(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False
