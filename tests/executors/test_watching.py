"""A head that goes is noticed, a head that is slow to answer is not taken for gone."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest

from autoprune.errors import StoppedError
from autoprune.executors import watching
from autoprune.executors.cluster import Cluster, _listening
from autoprune.executors.ray import Ray
from tests.made_up_ray import SPEC, World, jobs, run


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "PULSE", 0.02)


def until(holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_port_that_is_closed_counts_as_gone() -> None:
    with socket.create_server(("127.0.0.1", 0)) as head:
        watch = watching.Watch({f"127.0.0.1:{head.getsockname()[1]}": "gone"})
        head.accept()[0].close()
        head.accept()[0].close()
        assert not watch.lost
    until(lambda: watch.lost)
    assert watch.lost == "gone"
    watch.stop()


def test_a_machine_that_is_off_counts_as_gone_after_some_time(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def silent(at: tuple[str, int], seconds: float) -> socket.socket:
        tried.append(at)
        raise TimeoutError("timed out")

    monkeypatch.setattr(socket, "create_connection", silent)
    monkeypatch.setattr(watching, "SILENT", 0.3)
    watch = watching.Watch({"[::1]:6379": "gone"})
    until(lambda: len(tried) > 2)
    assert not watch.lost and tried[0] == ("::1", 6379)
    until(lambda: watch.lost)
    assert watch.lost.endswith("timed out")
    watch.stop()


def test_silence_is_counted_from_the_last_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[float] = []

    def hesitant(at: tuple[str, int], seconds: float) -> socket.socket:
        tried.append(time.monotonic())
        if tried[-1] - tried[0] > 0.5 and len(tried) % 2:
            raise TimeoutError("timed out")
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", hesitant)
    monkeypatch.setattr(watching, "SILENT", 0.4)
    watch = watching.Watch({"127.0.0.1:6379": "gone"})
    until(lambda: tried and tried[-1] - tried[0] > 0.8)
    assert not watch.lost
    watch.stop()


def test_a_run_whose_head_has_gone_stops_instead_of_waiting(world: World) -> None:
    executor = Ray(workers=2)
    executor.open(None, SPEC)  # type: ignore[arg-type]
    assert all(r.ok for r in run(executor, jobs([8, 16])).values())
    world.lost = StoppedError("executor=ray: the Ray started here has gone")
    with pytest.raises(StoppedError, match="has gone"):
        run(executor, jobs([8]))


@pytest.mark.parametrize(
    ("gone", "why"),
    [("head", "nobody listens there any more"), ("daemon", "its daemon on this machine has ended")],
)
def test_a_run_stops_when_its_head_or_its_daemon_on_this_machine_has_ended(
    gone: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray is not asked: it would wait for a head that is gone."""
    there = {name: socket.create_server(("127.0.0.1", 0)) for name in ("head", "daemon", "other")}
    ports = {name: server.getsockname()[1] for name, server in there.items()}
    here = SimpleNamespace(gcs_address=f"127.0.0.1:{ports['head']}", get_node_id=lambda: "daemon")
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get_runtime_context=lambda: here))
    nodes = [
        {"NodeID": name, "NodeManagerAddress": "127.0.0.1", "NodeManagerPort": ports[name]}
        for name in ("other", "daemon")
    ]
    made = Cluster.__new__(Cluster)
    made._address, made._watch = None, watching.Watch(_listening(nodes))
    there["other"].close()
    time.sleep(0.1)
    made.check()
    there[gone].close()
    until(lambda: made._watch and made._watch.lost)
    with pytest.raises(StoppedError, match=why):
        made.check()
    for server in there.values():
        server.close()


def test_between_two_looks_nobody_is_told_that_workers_are_slow_to_start(world: World) -> None:
    said: list[str] = []
    executor = Ray(workers=2)
    executor.say = said.append
    executor.open(None, SPEC)  # type: ignore[arg-type]
    world.slow = True
    executor.submit(jobs([8]))
    assert list(executor.results(timeout=2.5)) == [] and said == []
