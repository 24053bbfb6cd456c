"""A cluster of two nodes on this machine: one ledger, nodes that come and go, and what a cluster cannot offer."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.executors.ray import Ray

pytestmark = [pytest.mark.ray, pytest.mark.alone]
STORE = 80 << 20


class Nodes:
    """A head and what joins it; only these are ever ended."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        head = {"num_cpus": 1, "object_store_memory": STORE, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = str(self._cluster.address)
        self.second = self.join()

    def join(self, cpus: int = 1, resource: str = "fast") -> Any:
        """One more node, with a resource that the head lacks."""
        return self._cluster.add_node(num_cpus=cpus, resources={resource: 1}, object_store_memory=STORE)

    def lose(self, node: Any) -> None:
        """As when a machine is switched off."""
        self._cluster.remove_node(node, allow_graceful=False)

    def close(self) -> None:
        self._cluster.shutdown()


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    from autoprune.executors.cluster import QUIET

    os.environ.update(QUIET)
    before = rays()
    made = Nodes()
    yield made
    made.close()
    deadline = time.monotonic() + 60
    while (left := rays() - before) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left, "processes of Ray outlived the cluster"


def rays() -> set[str]:
    """The processes of all Rays on this machine."""
    listed = subprocess.run(["ps", "-eo", "pid=,args="], capture_output=True, text=True, check=True).stdout
    words = ("raylet/raylet", "gcs_server", "ray::")
    return {line.split()[0] for line in listed.splitlines() if any(w in line for w in words)}


@contextmanager
def opened(bench: Any, **settings: Any) -> Iterator[Ray]:
    executor = Ray(**settings)
    try:
        executor.open(bench.evaluation(), bench.spec)
        yield executor
    finally:
        executor.close()


def test_the_ledger_does_not_depend_on_nodes(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    settings = {"workers": 1, "resources": {"fast": 1}, "cpus": 0.5}
    with opened(bench, address=nodes.address, **settings) as executor:
        assert bench.study(executor, tmp_path) == undisturbed


def test_a_worker_on_each_node_and_one_that_waits_for_another_node(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    said: list[str] = []
    executor = Ray(workers=3, address=nodes.address)
    executor.say = said.append
    executor.open(bench.evaluation(), bench.spec)
    assert bench.study(executor, tmp_path) == undisturbed
    executor.close()
    room = f"the Ray at executor.address={nodes.address} has room for 2 of 3 workers"
    assert (
        said[0] == f"{room}; the others start when nodes join it"
    )  # on a busy machine it also says that it waits


def test_a_node_that_sees_no_files_gets_a_copy_once(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    with opened(bench, address=nodes.address, artifacts="ship") as executor:
        assert bench.study(executor, tmp_path) == undisturbed
    (copy,) = (Path(bench.spec.cache) / "shipped").glob("[!.]*")
    assert list(copy.glob("input0/model/config.json")) and list(copy.glob("cache/ladders/*/*.safetensors"))


def test_what_no_node_has_is_told_with_what_there_is(nodes: Nodes, bench: Any, tmp_path: Path) -> None:
    said = (
        "a worker needs 1 CPUs, 1 GPUs, and no node of the Ray at executor.address=.* has that: "
        "1 node with 1 CPUs; 1 node with 1 CPUs, 1 fast"
    )
    with (
        pytest.raises(SettingError, match=said),
        opened(bench, address=nodes.address, workers=2, gpus=1) as executor,
    ):
        bench.study(executor, tmp_path)


class Loses(Ray):
    """Something happens after the first results."""

    def __init__(self, happens: Any, **settings: Any) -> None:
        super().__init__(**settings)
        self._happens, self._seen = happens, 0

    def results(self, timeout: float | None = None) -> Iterator[Any]:
        for result in super().results(timeout):
            self._seen += 1
            if self._seen == 3:
                self._happens()
            yield result


def test_a_node_lost_in_a_run_loses_nothing_and_a_new_one_gets_a_worker(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    settings = {"workers": 1, "address": nodes.address, "resources": {"fast": 1}}

    def switched() -> None:
        nodes.lose(nodes.second)
        nodes.second = nodes.join()

    executor = Loses(switched, **settings)
    executor.open(bench.evaluation(), bench.spec)
    assert bench.study(executor, tmp_path) == undisturbed, "all that is left must run on the node that came"
    assert executor._seen > 3
    executor.close()


def test_a_node_for_timing_does_nothing_else_meanwhile(nodes: Nodes, bench: Any) -> None:
    import ray

    from autoprune.errors import MeasurementError
    from autoprune.executors.timing import Timing

    own, spec = nodes.join(0, "timing"), bench.spec
    small = {"rounds": 5, "prefill_tokens": 6, "context": 6, "decode_steps": 1, "kernels": False}
    spec.settings["latency"].update(small)
    with Timing(spec, nodes.address, {"timing": 1}, "auto", print) as timing:
        assert "timing" not in ray.available_resources() and ray.cluster_resources()["timing"] == 1
        with suppress(MeasurementError):  # a busy machine: it went all the way
            found, device = timing.models({"dense": bench.parts.dense_plan()}, "dense", False)
            assert found["dense"].prefill_ms > 0 and "node" in device
    nodes.lose(own)
