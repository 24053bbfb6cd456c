"""Ledgers of these tests need not survive a power cut: no waiting for the disk."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from autoprune import ledger


@pytest.fixture(autouse=True)
def unsynced(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite hands its pages to the system and goes on; a killed process loses nothing by it."""
    opened = ledger._open

    def quick(path: Path) -> sqlite3.Connection:
        db = opened(path)
        db.execute("PRAGMA synchronous=OFF")
        return db

    monkeypatch.setattr(ledger, "_open", quick)
