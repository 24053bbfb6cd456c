"""What can go wrong around a run: one clear line, the right exit code, and nothing lost."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.cli import main
from autoprune.ledger import Ledger
from autoprune.run import folder, outputs

pytestmark = pytest.mark.alone

NOBODY = 65534


def one_line(said: str, *words: str) -> None:
    """What was said is one line of ours that holds these words."""
    assert said.startswith("autoprune: ") and said.count("\n") == 1, said
    for word in words:
        assert word in said, said


@pytest.fixture(scope="module")
def finished(given: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing happened to; nothing is timed or exported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outputs, "_export_best", lambda run, frame: None)
        return given.search(tmp_path_factory.mktemp("finished") / "run", "latency.mode=off").folder


@pytest.fixture
def unfinished(finished: Path, tmp_path: Path) -> Path:
    """A copy of the run whose last event is lost: it can be resumed."""
    run = tmp_path / "unfinished"
    shutil.copytree(finished, run)
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger, ledger._transaction() as db:
        db.execute("DELETE FROM events WHERE kind = 'finished'")
    return run


@pytest.mark.parametrize("kilobytes", [160, 400])
def test_a_full_disk_stops_the_run_and_costs_nothing(
    given: Any, finished: Path, tmp_path: Path, runs: SimpleNamespace, no_export: None, kilobytes: int
) -> None:
    """No file may grow beyond some size: what a full disk looks like from inside."""
    out, log, limit = tmp_path / "run", tmp_path / "log", kilobytes << 10

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    line = given.line(out, "latency.mode=off")
    status = os.waitpid(runs.fork(line, log, full), 0)[1]
    assert os.waitstatus_to_exitcode(status) == 3, log.read_text()
    one_line(log.read_text(), "the disk is full", "free some space", f"continue with: autoprune resume {out}")
    assert 0 < runs.progress(out) < runs.progress(finished)
    assert main(["resume", str(out)]) == 0
    assert runs.ordered(out) == runs.ordered(finished)


def test_a_full_disk_before_the_run_has_begun(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("autoprune.pruning.ladders.save_file", full)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    assert main(given.line(tmp_path / "run", "latency.mode=off")) == 3
    one_line(capsys.readouterr().err, "the disk is full", "start it again: the run had not begun")
    assert not (tmp_path / "run").exists() and not list((tmp_path / "cache").glob("ladders/*"))


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that everybody may look into; pytest's own are private."""
    path = Path(tempfile.mkdtemp())
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def test_a_read_only_run_folder(unfinished: Path, public: Path, runs: SimpleNamespace) -> None:
    run, log = public / "run", public / "log"
    shutil.copytree(unfinished, run)
    before = (run / "ledger.sqlite").read_bytes()
    log.touch(0o666)
    log.chmod(0o666)
    run.chmod(0o555)

    def unprivileged() -> None:
        if not os.geteuid():
            os.setegid(NOBODY)
            os.seteuid(NOBODY)

    status = os.waitpid(runs.fork(["resume", str(run)], log, unprivileged), 0)[1]
    run.chmod(0o755)
    assert os.waitstatus_to_exitcode(status) == 2, log.read_text()
    one_line(log.read_text(), f"{run} cannot be written: Permission denied")
    assert (run / "ledger.sqlite").read_bytes() == before


def test_two_processes_on_one_run(unfinished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with folder.at_work(unfinished):
        assert main(["resume", str(unfinished)]) == 2
    one_line(capsys.readouterr().err, f"is being worked on by process {os.getpid()}")


@pytest.mark.parametrize("where", [0.3, 0.6, 0.9])
def test_a_corrupt_page_in_the_ledger(
    unfinished: Path, capsys: pytest.CaptureFixture[str], where: float
) -> None:
    path = unfinished / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    page = int(where * len(content)) // 4096 * 4096
    content[page : page + 64] = bytes(255 - b for b in content[page : page + 64])
    path.write_bytes(content)
    assert main(["resume", str(unfinished)]) == 2
    one_line(capsys.readouterr().err, "ledger.sqlite is damaged", ".recover")
    assert path.read_bytes() == bytes(content), "a damaged ledger must be left as it is"


def test_no_ray(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("autoprune.executors.ray.find_spec", lambda name: None)
    assert main(given.line(tmp_path / "run", "executor=ray")) == 2
    one_line(capsys.readouterr().err, "pip install autoprune[ray]")
    assert not (tmp_path / "run").exists()
