"""Runs that are hunted and stop by themselves are resumed, a few times."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from autoprune.bench import crash
from autoprune.bench.crash import RESUMABLE, STOPS, Hunt
from autoprune.errors import StoppedError


def hunted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[int]) -> Hunt:
    """A hunt whose processes end with these exit codes; the last of them with the run finished."""
    pace: Any = None
    found = Hunt(tmp_path / "hunt", [], random.Random(0), pace)
    monkeypatch.setattr(crash.processes, "fork", lambda *_: 1)
    monkeypatch.setattr(crash.processes, "gone", lambda *_: True)
    monkeypatch.setattr(crash, "_finished", lambda run: not statuses)
    monkeypatch.setattr(crash, "result", lambda run: "all")
    monkeypatch.setattr(found, "_hunted", lambda pid, kills: statuses.pop(0))
    (tmp_path / "hunt" / "log").write_text("Ray did not start")
    return found


def test_a_run_that_stops_by_itself_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert StoppedError.exit_code == RESUMABLE
    assert hunted(tmp_path, monkeypatch, [-9, *[RESUMABLE] * STOPS, 0]).run(1, "all").same


@pytest.mark.parametrize("statuses", [[1, 0], [RESUMABLE] * (STOPS + 1) + [0]])
def test_but_neither_for_ever_nor_after_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statuses: list[int]
) -> None:
    with pytest.raises(RuntimeError, match="exit code .*:\nRay did not start"):
        hunted(tmp_path, monkeypatch, statuses).run(1, "all")
