"""Artifacts: built once, complete or absent, shared."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from autoprune.cache import Cache, default_root
from autoprune.errors import SettingError


def test_built_once_and_found_again(tmp_path: Path) -> None:
    built = []

    def build(folder: Path) -> None:
        assert not list(folder.iterdir())
        built.append(folder)
        (folder / "data").write_text("x")

    first = Cache(tmp_path).folder("ladders", {"model": "a", "n": 1}, build)
    again = Cache(tmp_path).folder("ladders", {"n": 1, "model": "a"}, build)
    assert first == again and len(built) == 1
    assert (first / "data").read_text() == "x"
    assert first.parent == tmp_path / "ladders" and [p.name for p in first.parent.iterdir()] == [first.name]


def test_other_inputs_and_other_kinds_are_other_artifacts(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    asked = [("a", 1), ("a", 2), ("b", 1), ("a", [1]), ("a", "1")]
    assert len({cache.folder(kind, inputs, lambda folder: None) for kind, inputs in asked}) == len(asked)


@pytest.mark.parametrize("error", [RuntimeError("boom"), KeyboardInterrupt(), OSError("disk full")])
def test_a_crash_while_building_leaves_nothing(tmp_path: Path, error: BaseException) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise error

    with pytest.raises(type(error)):
        Cache(tmp_path).folder("ladders", 1, build)
    assert not list((tmp_path / "ladders").iterdir())
    done = Cache(tmp_path).folder("ladders", 1, lambda folder: (folder / "whole").touch())
    assert [p.name for p in done.iterdir()] == ["whole"]


@pytest.mark.alone
def test_what_a_killed_builder_left_is_swept_away_by_the_next(tmp_path: Path) -> None:
    def hang(folder: Path) -> None:
        (folder / "half").write_text("x")
        time.sleep(60)

    pid = os.fork()
    if not pid:
        Cache(tmp_path).folder("ladders", 1, hang)
        os._exit(0)
    while not list(tmp_path.glob("ladders/.building-*/half")):
        time.sleep(0.005)
    Cache(tmp_path).folder("ladders", 2, lambda folder: None)
    assert len(list(tmp_path.glob("ladders/.building-*"))) == 1, "its owner was at work"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    Cache(tmp_path).folder("ladders", 3, lambda folder: None)
    assert not list(tmp_path.glob("ladders/.building-*"))


def test_builders_at_the_same_time_agree(tmp_path: Path) -> None:
    both = threading.Barrier(4, timeout=20)
    found: list[Path] = []

    def build(folder: Path) -> None:
        (folder / "data").write_text("same")
        both.wait()  # all are building before any is done

    def work() -> None:
        found.append(Cache(tmp_path).folder("teacher", 1, build))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found) == 4 and len(set(found)) == 1
    assert [p.name for p in found[0].parent.iterdir()] == [found[0].name]
    assert (found[0] / "data").read_text() == "same"


def test_a_root_that_cannot_be_written_is_a_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(SettingError, match="cannot be written.*AUTOPRUNE_CACHE=FOLDER") as caught:
        Cache(tmp_path / "file" / "cache").folder("ladders", 1, lambda folder: None)
    assert "\n" not in str(caught.value) and str(tmp_path / "file" / "cache") in str(caught.value)


def test_the_root_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "named"))
    assert Cache().root == default_root() == tmp_path / "named"
    monkeypatch.delenv("AUTOPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_root() == tmp_path / "xdg" / "autoprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "autoprune"
