"""The durable, ordered record of a run: every ask, proposal and result, in one SQLite file (WAL)."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import LedgerError
from autoprune.objective import Array, Fidelity, Proposal, Result, Split, Status, jsonable
from autoprune.space import Candidate

if TYPE_CHECKING:
    import pandas as pd

FORMAT = 1
FILE = "ledger.sqlite"
SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE events (id INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, payload TEXT NOT NULL);
CREATE TABLE batches (phase INTEGER, number INTEGER, asked INTEGER NOT NULL, PRIMARY KEY (phase, number));
CREATE TABLE proposals (phase INTEGER, id INTEGER, batch INTEGER NOT NULL, candidate TEXT NOT NULL,
    split TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, parents TEXT NOT NULL,
    PRIMARY KEY (phase, id));
CREATE TABLE results (phase INTEGER, id INTEGER, key TEXT NOT NULL, status TEXT NOT NULL, reason TEXT NOT NULL,
    origin TEXT NOT NULL, tokens INTEGER NOT NULL, metrics TEXT NOT NULL, PRIMARY KEY (phase, id));
CREATE TABLE blobs (phase INTEGER, id INTEGER, metric TEXT, data BLOB NOT NULL, PRIMARY KEY (phase, id, metric));
CREATE TABLE finals (key TEXT, split TEXT, start INTEGER, stop INTEGER, metrics TEXT NOT NULL, per_window BLOB,
    PRIMARY KEY (key, split, start, stop));
CREATE TABLE telemetry (id INTEGER PRIMARY KEY, at REAL NOT NULL, phase INTEGER, batch INTEGER, payload TEXT NOT NULL);
"""


@dataclass(frozen=True)
class Recorded:
    """A stored result: its plan key, where it came from (`evaluated`, `memory`, `constraint`), and its tokens."""

    result: Result
    key: str
    origin: str
    tokens: int


class Ledger:
    """One run's ledger; every method that writes is one transaction."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = _open(path)

    @staticmethod
    def create(path: Path, meta: Mapping[str, str]) -> Ledger:
        """A new ledger; raises LedgerError when there is one already."""
        if path.exists():
            raise LedgerError(f"{path.parent} holds a run already; use `autoprune resume {path.parent}` or another out=")
        ledger = Ledger(path)
        with ledger._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO meta VALUES (?, ?)", [("format", str(FORMAT)), *meta.items()])
        return ledger

    @staticmethod
    def open(path: Path) -> Ledger:
        """An existing ledger; raises LedgerError when it is missing, damaged or of another format."""
        if not path.is_file():
            raise LedgerError(f"{path.parent} is not a run folder (no {path.name})")
        ledger = Ledger(path)
        try:
            state = ledger._db.execute("PRAGMA quick_check(1)").fetchone()[0]
            found = ledger.meta().get("format")
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{path} is damaged ({error}); what can be read: sqlite3 {path} .recover") from error
        if state != "ok":
            raise LedgerError(f"{path} is damaged ({state}); what can be read: sqlite3 {path} .recover")
        if found != str(FORMAT):
            raise LedgerError(f"{path} has format {found}, this version reads {FORMAT}")
        return ledger

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise LedgerError(f"{self.path} cannot be written: {error}; what was recorded before is kept") from error

    def meta(self) -> dict[str, str]:
        """What identifies the run: format, digests, versions."""
        return dict(self._db.execute("SELECT key, value FROM meta").fetchall())

    def event(self, kind: str, **payload: Any) -> None:
        """Note something that happened."""
        with self._transaction() as db:
            row = (time.time(), kind, json.dumps(jsonable(payload)))
            db.execute("INSERT INTO events (at, kind, payload) VALUES (?, ?, ?)", row)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of all events of a kind, oldest first."""
        rows = self._db.execute("SELECT payload FROM events WHERE kind = ? ORDER BY id", (kind,)).fetchall()
        return [json.loads(r[0]) for r in rows]

    def record_batch(self, phase: int, number: int, asked: int, proposals: Sequence[Proposal]) -> None:
        """One ask and all its proposals."""
        with self._transaction() as db:
            db.execute("INSERT INTO batches VALUES (?, ?, ?)", (phase, number, asked))
            db.executemany(
                "INSERT INTO proposals VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                [(phase, p.id, number, *_proposal_row(p)) for p in proposals],
            )

    def record(self, phase: int, recorded: Recorded) -> None:
        """One result with its per-window values."""
        result = recorded.result
        for metric, value in result.metrics.items():
            if not math.isfinite(value):
                raise LedgerError(f"metric {metric}={value} of plan {recorded.key} is not finite; a status belongs here")
        row = (
            *(phase, result.proposal.id, recorded.key, result.status.value, result.reason),
            *(recorded.origin, recorded.tokens, json.dumps(jsonable(result.metrics))),
        )
        with self._transaction() as db:
            db.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
            db.executemany(
                "INSERT INTO blobs VALUES (?, ?, ?, ?)",
                [(phase, result.proposal.id, m, _bytes(v)) for m, v in result.per_window.items()],
            )

    def batches(self, phase: int) -> list[tuple[int, int]]:
        """(number, asked) of every recorded batch, in order."""
        rows = self._db.execute("SELECT number, asked FROM batches WHERE phase = ? ORDER BY number", (phase,))
        return [(int(n), int(a)) for n, a in rows.fetchall()]

    def proposals(self, phase: int, batch: int) -> list[Proposal]:
        """Proposals of a batch in id order."""
        rows = self._db.execute(
            "SELECT id, candidate, split, start, stop, parents FROM proposals WHERE phase = ? AND batch = ? ORDER BY id",
            (phase, batch),
        )
        return [_proposal(*row) for row in rows.fetchall()]

    def results(self, phase: int, batch: int) -> dict[int, Recorded]:
        """Recorded results of a batch by proposal id."""
        found = {}
        for proposal in self.proposals(phase, batch):
            recorded = self._result(phase, proposal)
            if recorded is not None:
                found[proposal.id] = recorded
        return found

    def _result(self, phase: int, proposal: Proposal) -> Recorded | None:
        row = self._db.execute(
            "SELECT key, status, reason, origin, tokens, metrics FROM results WHERE phase = ? AND id = ?",
            (phase, proposal.id),
        ).fetchone()
        if row is None:
            return None
        blobs = self._db.execute("SELECT metric, data FROM blobs WHERE phase = ? AND id = ?", (phase, proposal.id))
        per_window = {metric: _array(data) for metric, data in blobs.fetchall()}
        result = Result(proposal, Status(row[1]), json.loads(row[5]), per_window, row[2])
        return Recorded(result, row[0], row[3], int(row[4]))

    def recorded(self) -> Iterator[tuple[int, Recorded]]:
        """Every result of every phase with its phase, in order."""
        phases = self._db.execute("SELECT DISTINCT phase FROM batches ORDER BY phase").fetchall()
        for (phase,) in phases:
            for number, _ in self.batches(phase):
                found = self.results(phase, number)
                yield from ((int(phase), found[i]) for i in sorted(found))

    def record_final(
        self, key: str, fidelity: Fidelity, metrics: Mapping[str, float], per_window: Mapping[str, Array]
    ) -> None:
        """A plan's metrics on a split that the search has not seen."""
        names = sorted(per_window)
        payload = json.dumps({"metrics": jsonable(metrics), "columns": names})
        data = b"".join(_bytes(per_window[n]) for n in names)
        row = (key, fidelity.split.value, *fidelity.windows, payload, data)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO finals VALUES (?, ?, ?, ?, ?, ?)", row)

    def finals(self, fidelity: Fidelity) -> dict[str, dict[str, float]]:
        """Metrics by plan key on exactly these windows."""
        rows = self._db.execute(
            "SELECT key, metrics FROM finals WHERE split = ? AND start = ? AND stop = ?",
            (fidelity.split.value, *fidelity.windows),
        )
        return {key: json.loads(payload)["metrics"] for key, payload in rows.fetchall()}

    def final_windows(self) -> int:
        """Windows run on held-out splits, over all plans."""
        return int(self._db.execute("SELECT COALESCE(SUM(stop - start), 0) FROM finals").fetchone()[0])

    def record_telemetry(self, phase: int, batch: int, **payload: float) -> None:
        """Measured times and counters: outside the ordered columns."""
        with self._transaction() as db:
            row = (time.time(), phase, batch, json.dumps(jsonable(payload)))
            db.execute("INSERT INTO telemetry (at, phase, batch, payload) VALUES (?, ?, ?, ?)", row)

    def telemetry(self) -> dict[str, float]:
        """Sums over all batches."""
        sums: dict[str, float] = {}
        for (payload,) in self._db.execute("SELECT payload FROM telemetry").fetchall():
            for name, value in json.loads(payload).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def tokens(self) -> int:
        """Fitness tokens spent on candidates so far."""
        return int(self._db.execute("SELECT COALESCE(SUM(tokens), 0) FROM results").fetchone()[0])

    def ordered(self) -> list[tuple[Any, ...]]:
        """The ordered columns: equal for every run of the same search, whatever was killed or how many workers ran."""
        return self._db.execute(
            "SELECT p.phase, p.batch, p.id, p.candidate, p.split, p.start, p.stop, p.parents, r.key, r.status, r.reason,"
            " r.origin, r.tokens, r.metrics, (SELECT group_concat(hex(b.data)) FROM blobs b WHERE b.phase = p.phase AND"
            " b.id = p.id) FROM proposals p LEFT JOIN results r USING (phase, id) ORDER BY p.phase, p.id"
        ).fetchall()

    def to_frame(self) -> pd.DataFrame:
        """One row per proposal: phase, batch, id, key, status, reason, origin, tokens, windows and all metrics."""
        import pandas as pd

        rows = self._db.execute(
            "SELECT p.phase, p.batch, p.id, p.candidate, p.split, p.start, p.stop, r.key, r.status, r.reason, r.origin,"
            " r.tokens, r.metrics FROM proposals p JOIN results r USING (phase, id) ORDER BY p.phase, p.id"
        ).fetchall()
        names = "phase batch id candidate split start stop key status reason origin tokens".split()
        return pd.DataFrame([{**dict(zip(names, row, strict=False)), **json.loads(row[-1])} for row in rows])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def _open(path: Path) -> sqlite3.Connection:
    try:
        db = sqlite3.connect(path, isolation_level=None, timeout=30)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=NORMAL")
    except sqlite3.DatabaseError as error:
        raise LedgerError(f"{path} cannot be opened: {error}") from error
    return db


def _proposal_row(proposal: Proposal) -> tuple[str, str, int, int, str]:
    fidelity = proposal.fidelity
    return (
        *(proposal.candidate.to_json(), fidelity.split.value, *fidelity.windows),
        json.dumps(proposal.parents),
    )


def _proposal(number: int, candidate: str, split: str, start: int, stop: int, parents: str) -> Proposal:
    fidelity = Fidelity(Split(split), (start, stop))
    return Proposal(number, Candidate.from_json(candidate), fidelity, tuple(json.loads(parents)))


def _bytes(values: Array) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _array(data: bytes) -> Array:
    return np.frombuffer(data, dtype="<f8").copy()
