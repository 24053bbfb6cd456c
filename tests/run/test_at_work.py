"""One process at a time works on a run."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from autoprune.errors import LedgerError
from autoprune.locks import held
from autoprune.run.folder import at_work


def test_a_run_that_is_worked_on_is_refused(tmp_path: Path) -> None:
    with at_work(tmp_path):
        assert held(tmp_path / ".running")
        with (
            pytest.raises(LedgerError, match=f"is being worked on by process {os.getpid()};"),
            at_work(tmp_path),
        ):
            pass
        assert held(tmp_path / ".running")
    assert not list(tmp_path.iterdir())


def test_the_mark_goes_when_the_work_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), at_work(tmp_path):
        raise KeyboardInterrupt
    with at_work(tmp_path):
        pass
