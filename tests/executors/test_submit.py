"""A head that the test starts, and real jobs on it: submitted, followed, stopped, resumed; nothing is left running."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from autoprune.cli import main
from autoprune.executors.submission.local import Local, _naming
from autoprune.ledger import FILE, Ledger
from tests import tiny

pytestmark = [pytest.mark.ray, pytest.mark.alone]
SETTINGS = [
    *("window=16", "sequences=4", "calibration.tokens=256", "latency.mode=off", "selection_windows=2"),
    *(
        "test_windows=2",
        "search=random",
        "search.windows=4",
        "search.batch=4",
        "finalists=2",
        "uniform=[0.5]",
    ),
    *("executor=ray", "executor.workers=1", "front_points=2"),
]


@pytest.fixture(scope="module")
def home(guarded: Path) -> Path:
    """Where the head lives, with a model and a text."""
    (guarded / "work").mkdir()
    (guarded / "work" / "text.txt").write_text(tiny.text(20_000))
    tiny.save(tiny.llama(noise=0.1), guarded / "work" / "model")
    return guarded


@pytest.fixture
def words(home: Path, artifact_cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What every submission begins with; the cache is the tests' own."""
    monkeypatch.chdir(home / "work")
    return ["submit", "cluster=local", "cluster.cpus=2", f"cluster.folder={home}"]


def rows(folder: Path) -> int:
    if not (folder / FILE).is_file():
        return 0
    ledger = Ledger(folder / FILE)
    try:
        return int(ledger._read("SELECT COUNT(*) FROM results")[0][0])
    except Exception:  # the tables are not there yet
        return 0
    finally:
        ledger.close()


def test_a_job_is_submitted_stopped_and_resumed(
    home: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    before = os.listdir("/tmp/ray") if Path("/tmp/ray").is_dir() else []
    run = ["model=model", "data=text.txt", "tokens=16000", "out=run", *SETTINGS]
    assert main([*words, "--no-wait", "--", *run]) == 0
    told = capfd.readouterr().out
    job, out = told.split()[1].rstrip(":"), home / "work" / "run"
    assert told.splitlines()[0] == f"job {job}: {out}" and f"--logs {job}" in told

    deadline = time.monotonic() + 120
    while rows(out) < 8:
        assert time.monotonic() < deadline, _logs(words, job, capfd)
        time.sleep(0.2)
    assert main([*words, "--stop", job]) == 0
    while main([*words, "--status", job]) == 0 and "STOPPED" not in capfd.readouterr().out:
        assert time.monotonic() < deadline
        time.sleep(0.5)
    stopped = rows(out)
    assert not (out / "leaderboard.csv").exists()
    assert main([*words, "--list"]) == 0 and f"{job}  STOPPED    model=model" in capfd.readouterr().out

    assert main([*words, "--", "resume", "run"]) == 0, capfd.readouterr().out
    said = capfd.readouterr().out
    assert "search stopped on tokens" in said, "the job's own words are shown"
    assert (out / "leaderboard.csv").is_file() and rows(out) > stopped
    assert (os.listdir("/tmp/ray") if Path("/tmp/ray").is_dir() else []) == before, "another Ray's folder"


def test_a_job_that_fails_gives_its_exit_code(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--", "resume", "nosuchrun"]) == 2
    told = capfd.readouterr()
    assert "nosuchrun is not a run folder" in told.out and "is FAILED, exit code 2" in told.err


def test_mistakes_with_a_head_that_answers(
    home: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    (home / "wrong").write_text("0" * 64)
    address = Local(folder=str(home)).address()
    other = ["submit", "cluster=onpremise", f"cluster.address={address}", f"cluster.token_file={home}/wrong"]
    assert main([*other, "--", "model=x"]) == 2
    assert "the cluster does not take this token" in one_line(capfd)
    assert main([*words, "--status", "raysubmit_none"]) == 2
    assert "has no job raysubmit_none" in one_line(capfd)


def test_another_version_of_ray_is_refused(
    home: Path, words: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setattr(ray, "__version__", "9.9.9")
    assert main([*words, "--list"]) == 2
    assert "here it is 9.9.9; pip install 'ray[default]==" in one_line(capfd)


def test_down_ends_the_head_and_says_when_there_is_none(
    home: Path, words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert _naming(str(home))
    assert main([*words, "--down"]) == 0 and not _naming(str(home))
    assert main([*words, "--down"]) == 0
    assert capfd.readouterr().out.splitlines()[-2:] == ["the head has ended", "there is no head"]


def one_line(capfd: pytest.CaptureFixture[str]) -> str:
    said = capfd.readouterr().err.strip()
    assert "\n" not in said
    return said


def _logs(words: list[str], job: str, capfd: pytest.CaptureFixture[str]) -> str:
    main([*words, "--logs", job])
    return capfd.readouterr().out
