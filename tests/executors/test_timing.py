"""The worker that measures: its table is its node's, its times are those of whole models."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.executors.offers import Demand, whole_node
from autoprune.executors.worker import Ready, Timer
from autoprune.hardware import interruptions, sentinel
from autoprune.hardware.fingerprint import fingerprint
from autoprune.progress import Progress
from autoprune.run import elsewhere, latency
from autoprune.run.latency import STOCK

NODES = [
    {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1e9}},
    {"Alive": False, "Resources": {"CPU": 4.0, "timing": 1.0}},
    {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0, "timing": 2.0, "node:10.0.0.1": 1.0}},
]


@pytest.fixture
def timer(bench: Any, monkeypatch: pytest.MonkeyPatch) -> Timer:
    monkeypatch.setattr(sentinel, "CONTENDED", float("inf"))
    monkeypatch.setattr(sentinel, "DIRTY", float("inf"))
    monkeypatch.setattr(interruptions, "TOLERATED", float("inf"))
    made = Timer()
    spec = bench.spec
    spec.settings["latency"] |= {
        "rounds": 5,
        "prefill_tokens": 6,
        "context": 6,
        "decode_steps": 1,
        "kernels": False,
    }
    assert isinstance(made.open(spec), Ready)
    return made


def test_the_table_is_measured_where_the_timer_is(timer: Timer, monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(parts: Any, progress: Any) -> Any:
        assert parts.adapter.shape.blocks == 3
        return SimpleNamespace(to_json=lambda: json.dumps(fingerprint(1)))

    monkeypatch.setattr(latency, "measured_table", measured)
    assert json.loads(timer.table()) == fingerprint(1)


def test_models_are_timed_and_the_device_is_named(timer: Timer, bench: Any) -> None:
    dense = bench.parts.dense_plan()
    found, device = timer.models({"whole": dense}, "whole", False)
    assert found["whole"].decode_ms > 0 and STOCK not in found
    assert "1 threads" in device and str(fingerprint(1)["cpu"]) in device


def test_a_node_is_taken_as_a_whole() -> None:
    assert whole_node({"timing": 1}, NODES, "it") == Demand(2.0, 1.0, {"timing": 2.0})
    with pytest.raises(
        SettingError,
        match="latency.on: no node of it has 1 fast: 1 node with 2 CPUs, 1 GPUs, 2 timing; 1 node with 4 CPUs",
    ):
        whole_node({"fast": 1}, NODES, "it")


def test_without_a_cluster_there_is_no_node(bench: Any) -> None:
    parts: Any = SimpleNamespace(cfg=compose(["model=x", "latency.on=timing"]))
    assert elsewhere.wanted(parts) and not elsewhere.wanted(bench.parts)
    with pytest.raises(
        SettingError, match="latency.on names a node of a cluster: it needs executor=ray with"
    ):
        elsewhere.table(parts, Progress(quiet=True))


def test_resources_are_named_on_the_command_line() -> None:
    cfg = compose(["model=x", "executor=ray", "executor.resources={fast: 0.5}", "executor.gpus=0.5"])
    assert dict(cfg.executor.resources) == {"fast": 0.5} and cfg.executor.gpus == 0.5
