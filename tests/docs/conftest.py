"""An empty folder with a tiny model and a text, as the pages assume."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from autoprune.hardware import sentinel
from tests import tiny


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder in which a page's commands are run; times are measured on however busy a machine."""
    tiny.save(tiny.llama(noise=0.1), tmp_path / "my-model")
    (tmp_path / "my-text.txt").write_text(tiny.text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sentinel, "CONTENDED", float("inf"))
    monkeypatch.setattr(sentinel, "DIRTY", float("inf"))
    yield tmp_path
