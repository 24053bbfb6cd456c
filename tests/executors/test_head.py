"""The head of a cluster is started anew in the middle of a run: a line, an exit code, and `resume` loses nothing."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import pytest

from autoprune.bench.crash import progress, result
from autoprune.bench.small import make
from autoprune.cli import main
from autoprune.executors import watching
from autoprune.executors.ray import Ray
from autoprune.run import outputs
from tests import forking
from tests.ray_head import head, head_port, switch_off

pytestmark = [pytest.mark.ray, pytest.mark.alone]
ACCESS = {"RAY_AUTH_MODE": "disabled"}
PAUSE = 0.3  # seconds after every piece: the search must outlast the time in which a head that has gone is noticed


def ledger_only() -> None:
    """Leave out best/ and the report's pictures: they take longer than the search."""
    outputs._export_best = lambda run, frame: None  # type: ignore[assignment]
    outputs.html.write = lambda *given: None  # type: ignore[assignment]


def slow() -> None:
    """A search that takes its time, and soon notices that its head has gone."""
    ledger_only()
    watching.PULSE = 0.1
    take = Ray._take

    def later(self: Ray, *given: object) -> object:
        time.sleep(PAUSE)
        return take(self, *given)  # type: ignore[arg-type]

    Ray._take = later  # type: ignore[assignment, method-assign]


def test_a_head_started_anew_stops_the_run_in_a_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)
    monkeypatch.setattr(outputs.html, "write", lambda *given: None)
    words, run, log, port = make(tmp_path), tmp_path / "run", tmp_path / "log", head_port()
    assert main([*words, f"out={tmp_path / 'serial'}"]) == 0
    ray = ["executor=ray", "executor.workers=1", f"executor.address=127.0.0.1:{port}", f"out={run}"]

    with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder:
        with head(Path(folder), port, ACCESS) as first:
            search = forking.start(log, ACCESS, forking.command, [*words, *ray], slow)
            deadline = time.monotonic() + 120
            while progress(run) < 1:
                assert search.is_alive() and time.monotonic() < deadline, log.read_text()
                time.sleep(0.02)
            switch_off(first)
        had = progress(run)
        with head(Path(folder), port, ACCESS):
            search.join(120)
            said = log.read_text()
            lines = [line for line in said.splitlines() if line.startswith("autoprune:")]
            assert search.exitcode == 3 and len(lines) == 1, said
            assert f"the Ray at executor.address=127.0.0.1:{port} has gone" in lines[0]
            assert lines[0].endswith(f"continue with: autoprune resume {run}")
            assert progress(run) >= had > 0 and not (run / "leaderboard.csv").exists()
            again = forking.start(log, ACCESS, forking.command, ["resume", str(run)], ledger_only)
            again.join(240)
            assert again.exitcode == 0, log.read_text()
    assert result(run) == result(tmp_path / "serial")
