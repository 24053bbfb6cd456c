"""The Makefile: an old Python is refused in words, and setting up happens once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")


@pytest.fixture
def folder(root: Path, tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(root / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", "-C", str(folder), *words], capture_output=True, text=True)


def test_an_old_python_is_refused(folder: Path) -> None:
    old = folder / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2" && exit 0\nexit 1\n')
    old.chmod(0o755)
    done = make(folder, "test", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer" in done.stderr and "Python 3.9.2" in done.stderr
    assert not (folder / ".venv").exists()


def test_setting_up_again_only_when_the_requirements_change(folder: Path) -> None:
    stamp = folder / ".venv" / ".autoprune-installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert make(folder, "-q", "setup").returncode == 0
    changed = stamp.stat().st_mtime + 10
    os.utime(folder / "constraints.txt", (changed, changed))
    assert make(folder, "-q", "setup").returncode == 1


def test_the_ci_script_runs_tests_and_lint(root: Path) -> None:
    script = root / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make test", "make lint"} <= set(script.read_text().splitlines())
