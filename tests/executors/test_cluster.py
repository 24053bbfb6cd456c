"""A cluster of two nodes on this machine: one ledger, nodes that come and go, and what a cluster cannot offer."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.executors.ray import Ray
from tests.ray_nodes import Nodes

pytestmark = [pytest.mark.ray, pytest.mark.alone]


@pytest.fixture(scope="module", autouse=True)
def attached(nodes: Nodes) -> Iterator[None]:
    """This process takes part once, for all tests: that runs attach by themselves is for those of heads to show."""
    import ray

    ray.init(address=nodes.address, log_to_driver=False, logging_level=logging.ERROR)
    yield
    ray.shutdown()


@contextmanager
def opened(executor: Ray, bench: Any) -> Iterator[Ray]:
    try:
        executor.open(bench.evaluation(), bench.spec)
        yield executor
    finally:
        executor.close()


def test_a_worker_on_each_node_and_one_that_waits_for_another_node(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    said: list[str] = []
    executor = Ray(workers=3, address=nodes.address)
    executor.say = said.append
    with opened(executor, bench):
        assert bench.study(executor, tmp_path) == undisturbed
    room = f"the Ray at executor.address={nodes.address} has room for 2 of 3 workers"
    # on a busy machine it also says that it waits
    assert said[0] == f"{room}; the others start when nodes join it"


def test_what_no_node_has_is_told_with_what_there_is(nodes: Nodes, bench: Any, tmp_path: Path) -> None:
    said = (
        "a worker needs 1 CPUs, 1 GPUs, and no node of the Ray at executor.address=.* has that: "
        "1 node with 1 CPUs; 1 node with 1 CPUs, 1 fast, 1 timing"
    )
    with (
        pytest.raises(SettingError, match=said),
        opened(Ray(address=nodes.address, workers=2, gpus=1), bench) as executor,
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


def test_a_lost_node_that_saw_no_files_loses_nothing_and_the_next_finds_the_copy(
    nodes: Nodes, bench: Any, undisturbed: list[Any], tmp_path: Path
) -> None:
    settings = {"workers": 1, "address": nodes.address, "resources": {"fast": 1}, "artifacts": "ship"}
    executor = Loses(nodes.replace, **settings)
    with opened(executor, bench):
        assert bench.study(executor, tmp_path) == undisturbed, "what is left must run on the node that came"
    assert executor._seen > 3
    (copy,) = (Path(bench.spec.cache) / "shipped").glob("[!.]*")
    assert list(copy.glob("input0/model/config.json")) and list(copy.glob("cache/ladders/*/*.safetensors"))


def test_a_node_for_timing_does_nothing_else_meanwhile(nodes: Nodes, bench: Any) -> None:
    import ray

    from autoprune.errors import MeasurementError
    from autoprune.executors.timing import Timing

    spec = bench.spec
    small = {"rounds": 5, "prefill_tokens": 6, "context": 6, "decode_steps": 1, "kernels": False}
    spec.settings["latency"].update(small)
    with Timing(spec, nodes.address, {"timing": 1}, "auto", print) as timing:
        free = ray.available_resources()
        assert ray.cluster_resources()["timing"] == 1 and not {"timing", "fast"} & set(free)
        with suppress(MeasurementError):  # a busy machine: it went all the way
            found, device = timing.models({"dense": bench.parts.dense_plan()}, "dense", False)
            assert found["dense"].prefill_ms > 0 and "node" in device
