"""The head of a cluster is started anew in the middle of a run: a line, an exit code, and `resume` loses nothing."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from autoprune.bench.crash import progress, result
from autoprune.bench.small import make
from autoprune.cli import main
from tests.ray_head import head, head_port, switch_off

pytestmark = [pytest.mark.ray, pytest.mark.alone]
ACCESS = {"RAY_AUTH_MODE": "disabled"}
LONG = "tokens=80000"  # the search must outlast the second in which a head that has gone is noticed


def started(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "autoprune", *words],
        env={**os.environ, **ACCESS},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_a_head_started_anew_stops_the_run_in_a_line_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    words, run, port = [*make(tmp_path), LONG], tmp_path / "run", head_port()
    assert main([*words, f"out={tmp_path / 'serial'}"]) == 0
    ray = ["executor=ray", "executor.workers=1", f"executor.address=127.0.0.1:{port}"]

    with tempfile.TemporaryDirectory(prefix="ap-", dir="/tmp") as folder:
        with head(Path(folder), port, ACCESS) as first:
            search = started(*words, *ray, f"out={run}")
            deadline = time.monotonic() + 120
            while progress(run) < 1:
                assert search.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            switch_off(first)
        had = progress(run)
        with head(Path(folder), port, ACCESS):
            _, said = search.communicate(timeout=120)
            lines = [line for line in said.splitlines() if line.startswith("autoprune:")]
            assert search.returncode == 3 and len(lines) == 1, said
            assert f"the Ray at executor.address=127.0.0.1:{port} has gone" in lines[0]
            assert lines[0].endswith(f"continue with: autoprune resume {run}")
            assert progress(run) >= had > 0 and not (run / "leaderboard.csv").exists()
            again = started("resume", str(run))
            assert again.communicate(timeout=240) and again.returncode == 0
    assert result(run) == result(tmp_path / "serial")
