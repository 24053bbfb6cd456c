"""The run folder: claimed once, read back safely."""

from __future__ import annotations

import errno
import json
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from autoprune.errors import LedgerError, SettingError, StoppedError
from autoprune.ledger import FILE, Ledger
from autoprune.run import folder


def test_a_new_folder_is_made_with_its_parents(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b c"
    folder.claim(path)
    folder.claim(path)
    assert path.is_dir() and not list(path.iterdir())


def test_a_folder_that_holds_a_run_is_refused_and_left_alone(tmp_path: Path) -> None:
    Ledger.create(tmp_path / FILE, {}).close()
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(LedgerError, match="holds a run already; use `autoprune resume"):
        folder.claim(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_run_that_died_before_it_began_does_not_block_its_folder(tmp_path: Path) -> None:
    db = sqlite3.connect(tmp_path / FILE)
    db.execute("PRAGMA journal_mode=WAL")
    db.close()
    folder.claim(tmp_path)
    Ledger.create(tmp_path / FILE, {}).close()
    folder.open_ledger(tmp_path).close()


@pytest.mark.alone
def test_the_system_lets_go_of_what_a_killed_process_held(tmp_path: Path) -> None:
    pid = os.fork()
    if not pid:
        with folder.at_work(tmp_path):
            (tmp_path / "held").touch()
            time.sleep(60)
        os._exit(0)
    while not (tmp_path / "held").exists():
        time.sleep(0.005)
    with pytest.raises(LedgerError, match=f"process {pid};"), folder.at_work(tmp_path):
        pass
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    with folder.at_work(tmp_path):
        assert (tmp_path / folder.WORKING).read_text().strip() == str(os.getpid())


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "ladders"),
        OSError("1000 requested and 12 written"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_full_disk_stops_a_run_and_says_how_to_go_on(tmp_path: Path, error: Exception) -> None:
    told = "the disk is full .* free some space, then "
    with pytest.raises(StoppedError, match=told + "start it again"), folder.resumable(tmp_path):
        raise error
    Ledger.create(tmp_path / FILE, {}).close()
    onward = f"{told}continue with: autoprune resume {tmp_path}"
    with pytest.raises(StoppedError, match=onward), folder.resumable(tmp_path):
        raise LedgerError("wrapped") from error


def test_other_errors_are_not_taken_for_a_full_disk(tmp_path: Path) -> None:
    for error in (OSError(errno.EACCES, "Permission denied"), ValueError("x"), LedgerError("damaged")):
        with pytest.raises(type(error)) as caught, folder.resumable(tmp_path):
            raise error
        assert caught.value is error
    first, second = LedgerError("a"), LedgerError("b")
    first.__cause__, second.__cause__ = second, first
    with pytest.raises(LedgerError), folder.resumable(tmp_path):
        raise first


def test_where_nothing_can_be_written_is_a_user_s_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(SettingError, match=f"out={path} cannot be written") as caught:
            folder.claim(path)
        assert "\n" not in str(caught.value)


def test_no_settings_no_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not a run folder \\(no config.yaml\\)"):
        folder.load_settings(tmp_path, trust=False)
    with pytest.raises(LedgerError, match="is not a run folder \\(no ledger.sqlite"):
        folder.open_ledger(tmp_path)


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "a: ${b", "\x00"])
def test_settings_that_cannot_be_read_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / folder.CONFIG).write_text(text)
    with pytest.raises(LedgerError, match="config.yaml") as caught:
        folder.load_settings(tmp_path, trust=False)
    assert "\n" not in str(caught.value)


def test_the_command_comes_back(tmp_path: Path) -> None:
    assert folder.command_of(tmp_path) == ""
    folder.write_json(tmp_path / folder.ENVIRONMENT, {"command": "autoprune model=é", "cpu": Path("x")})
    assert folder.command_of(tmp_path) == "autoprune model=é"
    assert json.loads((tmp_path / folder.ENVIRONMENT).read_text(encoding="utf-8"))["cpu"] == "x"


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_damaged_environment_is_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / folder.ENVIRONMENT).write_text(text)
    with pytest.raises(LedgerError, match="environment.json cannot be read") as caught:
        folder.command_of(tmp_path)
    assert "\n" not in str(caught.value)
