"""Files on their way to another node: all of them, with new paths, and refused when they are others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import SettingError, StoppedError
from autoprune.executors.offers import Demand, check_room
from autoprune.executors.shipping import Parcel, listed, missing, packed, unpacked
from autoprune.executors.versions import difference, versions
from autoprune.executors.worker import Lacks, Worker


class Store:
    """An object store, and what was asked of it."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.got = 0

    def put(self, part: bytes) -> int:
        self.parts.append(part)
        return len(self.parts) - 1

    def get(self, reference: int) -> bytes:
        self.got += 1
        return self.parts[reference]


@pytest.fixture
def elsewhere(bench: Any, tmp_path: Path) -> tuple[Any, Parcel, Store]:
    store = Store()
    parcel = packed(listed(bench.spec), store.put)
    return bench.spec, parcel, store


def test_what_is_unpacked_is_what_was_packed_and_only_once(
    elsewhere: tuple[Any, Parcel, Store], tmp_path: Path
) -> None:
    spec, parcel, store = elsewhere
    moved = unpacked(spec, parcel, tmp_path, store.get)
    before, after = listed(spec), listed(moved)
    assert list(before.values()) == list(after.values()) and not missing(after)
    assert all(Path(path).is_relative_to(tmp_path) for path in after)
    assert moved.settings["model"] == moved.inputs[0] != spec.settings["model"]
    assert {Path(p).read_bytes() for p in _all(before)} == {Path(p).read_bytes() for p in _all(after)}
    got = store.got
    assert unpacked(spec, parcel, tmp_path, store.get) == moved and store.got == got


def _all(files: Any) -> list[str]:
    return [str(Path(root) / name) if name else root for root, below in files.items() for name in below]


def test_the_spec_names_ladders_and_tokens_but_no_teachers(bench: Any) -> None:
    kinds = {name.partition("/")[0] for name in bench.spec.artifacts}
    assert {"ladders"} <= kinds and not kinds & {"teacher", "latency"}
    assert [Path(p).name for p in bench.spec.inputs] == ["model", "text.txt"]


def test_a_worker_says_which_file_it_lacks(bench: Any) -> None:
    gone = {"/no/such/model": {"config.json": 3}}
    answer = Worker().open(bench.spec, gone)
    assert isinstance(answer, Lacks) and answer.file == "/no/such/model/config.json"
    root = bench.spec.inputs[1]
    assert missing({root: {"": 1}}) == f"{root} (of another size)"


def test_another_version_is_refused_in_one_line(bench: Any) -> None:
    other = replace(bench.spec, versions={**versions(), "torch": "1.0"})
    with pytest.raises(SettingError, match="the run has torch 1.0, here .* workers need the versions"):
        Worker().open(other)
    assert not difference(versions(), versions())


def test_room_on_nodes_of_different_kinds() -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "GPU": 1.0, "memory": 1e9, "node:a": 1.0}},
        {"Alive": True, "Resources": {"CPU": 2.0}},
        {"Alive": False, "Resources": {"CPU": 64.0, "fast": 1.0}},
    ]
    assert check_room(Demand(1), 8, nodes, "it") == 6 and check_room(Demand(1), 3, nodes, "it") == 3
    assert check_room(Demand(1, 0.5), 8, nodes, "it") == 2
    with pytest.raises(
        SettingError, match="needs 1 CPUs, 1 fast, .* 1 node with 2 CPUs; 1 node with 4 CPUs, 1 GPUs"
    ):
        check_room(Demand(1, 0, {"fast": 1}), 1, nodes, "it")


def test_a_node_whose_cache_cannot_be_written_is_told_in_one_line(
    elsewhere: tuple[Any, Parcel, Store], tmp_path: Path
) -> None:
    spec, parcel, store = elsewhere
    (tmp_path / "file").write_text("")
    with pytest.raises(
        SettingError, match="the artifact cache .*file cannot be written .*set AUTOPRUNE_CACHE=FOLDER"
    ):
        unpacked(spec, parcel, tmp_path / "file", store.get)


def test_artifacts_that_do_not_fit_into_the_object_store(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    from autoprune.executors.cluster import Cluster

    class Full(Exception):
        pass

    def put(part: bytes) -> None:
        raise Full("no room")

    ray = SimpleNamespace(put=put, exceptions=SimpleNamespace(RayError=Full))
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(
        StoppedError, match="do not fit into the object store .no room.; give Ray a larger one"
    ):
        packed(listed(bench.spec), Cluster.__new__(Cluster).put)
