"""The Ray of a sweep: one for all its runs, gone at its end."""

from __future__ import annotations

import os
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from autoprune.bench.processes import descendants
from autoprune.cli import main
from autoprune.executors import local
from autoprune.run import outputs
from tests import tiny


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What was started with how many CPUs, and ended."""
    found: list[tuple[str, int]] = []

    def begin(held: ExitStack, cpus: int) -> None:
        found.append(("start", cpus))
        held.callback(lambda: found.append(("end", cpus)))

    monkeypatch.setattr(local, "_start", begin)
    return found


def test_runs_of_a_sweep_share_one_until_one_needs_more(seen: list[tuple[str, int]]) -> None:
    with local.one_ray():
        for cpus in (2, 1, 2, 3):
            with ExitStack() as held:
                local.start(held, cpus)
    assert seen == [("start", 2), ("end", 2), ("start", 3), ("end", 3)]


def test_without_a_sweep_each_run_has_its_own(seen: list[tuple[str, int]]) -> None:
    for _ in range(2):
        with ExitStack() as held:
            local.start(held, 1)
    assert seen == [("start", 1), ("end", 1)] * 2


def test_it_makes_way_for_a_ray_that_runs_already(seen: list[tuple[str, int]]) -> None:
    with local.one_ray():
        local.start(ExitStack(), 1)
        local.leave()
        assert seen == [("start", 1), ("end", 1)]
        local.leave()
    assert len(seen) == 2


def test_what_goes_wrong_is_told_and_the_next_run_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    outcomes = iter([OSError("no room"), None])

    def begin(held: ExitStack, cpus: int) -> None:
        if error := next(outcomes):
            raise error

    monkeypatch.setattr(local, "_start", begin)
    with local.one_ray():
        with pytest.raises(OSError, match="no room"):
            local.start(ExitStack(), 1)
        local.start(ExitStack(), 1)
    assert not [t for t in threading.enumerate() if t.name == "shared ray"]


@pytest.mark.parametrize("user", ["0", "1000", "4294967294"])
def test_sockets_fit_below_the_longest_temporary_folder(user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    socket = "/ray-12345678/session_2026-01-02_03-04-05_123456_1234567/sockets/plasma_store"
    for length in range(5, 60):
        root = "/" + "x" * (length - 1)
        monkeypatch.setattr(tempfile, "gettempdir", lambda root=root: root)
        monkeypatch.setattr(os, "getuid", lambda: int(user))
        monkeypatch.setattr(Path, "mkdir", lambda *given, **named: None)
        monkeypatch.setattr(Path, "stat", lambda path: type("Stat", (), {"st_uid": int(user)}))
        folder = str(local._temporary())
        assert len(folder + socket) <= 107
    assert folder.startswith("/tmp/"), "it was too long"


@pytest.mark.ray
@pytest.mark.alone
def test_a_sweep_from_the_command_line_starts_ray_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    started: list[int] = []
    idle: list[str] = []
    begin = local._start

    def counted(held: ExitStack, cpus: int) -> None:
        started.append(cpus)
        begin(held, cpus)
        held.callback(lambda: idle.extend(c for c in descendants(os.getpid()).values() if "ray::IDLE" in c))

    monkeypatch.setattr(local, "_start", counted)
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)
    monkeypatch.setattr(outputs.html, "write", lambda *given: None)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(tiny.text(20_000))
    tiny.save(tiny.llama(noise=0.1), tmp_path / "model")
    settings = [
        *("window=16", "sequences=4", "calibration.tokens=256", "latency.mode=off", "selection_windows=2"),
        *(
            "test_windows=2",
            "tokens=2000",
            "search.windows=4",
            "finalists=2",
            "uniform=[0.5]",
            "front_points=2",
        ),
        *("executor=ray", "executor.workers=1", "quiet=true"),
    ]
    inputs = [f"model={tmp_path / 'model'}", f"data={tmp_path / 'text.txt'}", f"out={tmp_path / 'sweep'}"]
    assert main(["-m", "search=random,nsga2", *inputs, *settings]) == 0
    assert started == [1] and not ray.is_initialized()
    assert not idle, "processes that nobody uses"
    assert len(list(tmp_path.glob("sweep/*/leaderboard.csv"))) == 2
