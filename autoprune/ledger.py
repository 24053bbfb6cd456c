"""The durable, ordered record of a run: every ask, proposal and result, in one SQLite file (WAL)."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from autoprune.errors import LedgerError, SettingError
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
        if holds_run(path):
            folder = path.parent
            raise LedgerError(
                f"{folder} holds a run already; use `autoprune resume {folder}` or another out="
            )
        ledger = Ledger(path)
        with ledger._transaction() as db:
            for statement in SCHEMA.split(";"):
                db.execute(statement)
            db.executemany("INSERT INTO meta VALUES (?, ?)", [("format", str(FORMAT)), *meta.items()])
        return ledger

    @staticmethod
    def open(path: Path) -> Ledger:
        """An existing ledger; raises LedgerError when it is missing, damaged or of another format."""
        if not holds_run(path):
            raise LedgerError(f"{path.parent} is not a run folder (no {path.name}, or an empty one)")
        ledger = Ledger(path)
        try:
            ledger._check()
        except LedgerError:
            ledger.close()
            raise
        return ledger

    def _check(self) -> None:
        found = None
        try:
            state = str(self._db.execute("PRAGMA quick_check(1)").fetchone()[0])
            found = self._db.execute("SELECT value FROM meta WHERE key = 'format'").fetchone()
        except sqlite3.DatabaseError as error:
            state = str(error)
        if state != "ok":
            cause = " ".join(state.split())  # SQLite's own report has several lines
            raise LedgerError(
                f"{self.path} is damaged ({cause}); what can be read: sqlite3 {self.path} .recover"
            )
        if found != (str(FORMAT),):
            raise LedgerError(f"{self.path} has format {found and found[0]}, this version reads {FORMAT}")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except sqlite3.DatabaseError as error:
            raise LedgerError(
                f"{self.path} cannot be written: {error}; what was recorded before is kept"
            ) from error
        finally:
            if self._db.in_transaction:  # Ctrl-C too must not leave one open
                self._db.execute("ROLLBACK")

    def _read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        try:
            return self._db.execute(query, values).fetchall()
        except sqlite3.DatabaseError as error:
            raise LedgerError(f"{self.path} cannot be read: {error}") from error

    def _json(self, text: str) -> Any:
        with _sound(self.path, "a payload"):
            return json.loads(text)

    def meta(self) -> dict[str, str]:
        """What identifies the run: format, digests, versions."""
        return dict(self._read("SELECT key, value FROM meta"))

    def event(self, kind: str, **payload: Any) -> None:
        """Note something that happened."""
        with self._transaction() as db:
            row = (time.time(), kind, json.dumps(jsonable(payload)))
            db.execute("INSERT INTO events (at, kind, payload) VALUES (?, ?, ?)", row)

    def events(self, kind: str) -> list[dict[str, Any]]:
        """Payloads of all events of a kind, oldest first."""
        rows = self._read("SELECT payload FROM events WHERE kind = ? ORDER BY id", (kind,))
        return [self._json(payload) for (payload,) in rows]

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
        _check_finite(recorded.key, result.metrics, result.per_window)
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
        rows = self._read("SELECT number, asked FROM batches WHERE phase = ? ORDER BY number", (phase,))
        return [(int(n), int(a)) for n, a in rows]

    def proposals(self, phase: int, batch: int) -> list[Proposal]:
        """Proposals of a batch in id order."""
        rows = self._read(
            "SELECT id, candidate, split, start, stop, parents FROM proposals"
            " WHERE phase = ? AND batch = ? ORDER BY id",
            (phase, batch),
        )
        return [_proposal(self.path, *row) for row in rows]

    def results(self, phase: int, batch: int) -> dict[int, Recorded]:
        """Recorded results of a batch by proposal id."""
        found = {}
        for proposal in self.proposals(phase, batch):
            recorded = self._result(phase, proposal)
            if recorded is not None:
                found[proposal.id] = recorded
        return found

    def _result(self, phase: int, proposal: Proposal) -> Recorded | None:
        at = (phase, proposal.id)
        rows = self._read(
            "SELECT key, status, reason, origin, tokens, metrics FROM results WHERE phase = ? AND id = ?", at
        )
        if not rows:
            return None
        key, status, reason, origin, tokens, metrics = rows[0]
        blobs = self._read("SELECT metric, data FROM blobs WHERE phase = ? AND id = ? ORDER BY metric", at)
        per_window = {metric: _array(data) for metric, data in blobs}
        with _sound(self.path, f"result {proposal.id}"):
            result = Result(proposal, Status(status), json.loads(metrics), per_window, reason)
        return Recorded(result, key, origin, int(tokens))

    def recorded(self) -> Iterator[tuple[int, Recorded]]:
        """Every result of every phase with its phase, in order."""
        for (phase,) in self._read("SELECT DISTINCT phase FROM batches ORDER BY phase"):
            for number, _ in self.batches(phase):
                found = self.results(phase, number)
                yield from ((int(phase), found[i]) for i in sorted(found))

    def record_final(
        self, key: str, fidelity: Fidelity, metrics: Mapping[str, float], per_window: Mapping[str, Array]
    ) -> None:
        """A plan's metrics on a split that the search has not seen."""
        _check_finite(key, metrics, per_window)
        names = sorted(per_window)
        payload = json.dumps({"metrics": jsonable(metrics), "columns": names})
        data = b"".join(_bytes(per_window[n]) for n in names)
        row = (key, fidelity.split.value, *fidelity.windows, payload, data)
        with self._transaction() as db:
            db.execute("INSERT OR REPLACE INTO finals VALUES (?, ?, ?, ?, ?, ?)", row)

    def finals(self, fidelity: Fidelity) -> dict[str, dict[str, float]]:
        """Metrics by plan key on exactly these windows."""
        rows = self._read(
            "SELECT key, metrics FROM finals WHERE split = ? AND start = ? AND stop = ?",
            (fidelity.split.value, *fidelity.windows),
        )
        return {key: self._json(payload)["metrics"] for key, payload in rows}

    def final_values(self, fidelity: Fidelity) -> dict[str, dict[str, Array]]:
        """Values of every window by plan key and metric on exactly these windows."""
        rows = self._read(
            "SELECT key, metrics, per_window FROM finals WHERE split = ? AND start = ? AND stop = ?",
            (fidelity.split.value, *fidelity.windows),
        )
        named = {key: (self._json(payload)["columns"], _array(data)) for key, payload, data in rows}
        return {k: dict(zip(n, a.reshape(len(n), -1), strict=True)) for k, (n, a) in named.items()}

    def final_windows(self) -> int:
        """Windows run on held-out splits, over all plans."""
        return int(self._read("SELECT COALESCE(SUM(stop - start), 0) FROM finals")[0][0])

    def record_telemetry(self, phase: int, batch: int, **payload: float) -> None:
        """Measured times and counters: outside the ordered columns."""
        with self._transaction() as db:
            row = (time.time(), phase, batch, json.dumps(jsonable(payload)))
            db.execute("INSERT INTO telemetry (at, phase, batch, payload) VALUES (?, ?, ?, ?)", row)

    def telemetry(self) -> dict[str, float]:
        """Sums over all batches."""
        sums: dict[str, float] = {}
        for (payload,) in self._read("SELECT payload FROM telemetry"):
            for name, value in self._json(payload).items():
                sums[name] = sums.get(name, 0.0) + value
        return sums

    def tokens(self) -> int:
        """Fitness tokens spent on candidates so far."""
        return int(self._read("SELECT COALESCE(SUM(tokens), 0) FROM results")[0][0])

    def ordered(self) -> list[tuple[Any, ...]]:
        """The ordered columns: equal for all runs of one search, whatever was killed or how many workers ran."""
        return self._read(
            "SELECT p.phase, p.batch, p.id, p.candidate, p.split, p.start, p.stop, p.parents, r.key, r.status,"
            " r.reason, r.origin, r.tokens, r.metrics, (SELECT group_concat(metric || hex(data)) FROM (SELECT metric,"
            " data FROM blobs b WHERE b.phase = p.phase AND b.id = p.id ORDER BY metric)) FROM proposals p"
            " LEFT JOIN results r USING (phase, id) ORDER BY p.phase, p.id"
        )

    def to_frame(self) -> pd.DataFrame:
        """One row per proposal: phase, batch, id, key, status, reason, origin, tokens, windows and all metrics."""
        import pandas as pd

        rows = self._read(
            "SELECT p.phase, p.batch, p.id, p.candidate, p.split, p.start, p.stop, r.key, r.status, r.reason,"
            " r.origin, r.tokens, r.metrics FROM proposals p JOIN results r USING (phase, id) ORDER BY p.phase, p.id"
        )
        names = "phase batch id candidate split start stop key status reason origin tokens".split()
        return pd.DataFrame([{**dict(zip(names, row, strict=False)), **self._json(row[-1])} for row in rows])

    def close(self) -> None:
        """Close the file."""
        self._db.close()


def holds_run(path: Path) -> bool:
    """Whether a file holds a ledger; what a crash leaves before the first transaction holds none."""
    if not path.is_file():
        return False
    db = _open(path)
    try:
        return bool(db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.DatabaseError:
        return True  # damaged: there was something
    finally:
        db.close()


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


def _proposal(
    path: Path, number: int, candidate: str, split: str, start: int, stop: int, parents: str
) -> Proposal:
    with _sound(path, f"proposal {number}"):
        fidelity = Fidelity(Split(split), (start, stop))
        return Proposal(number, Candidate.from_json(candidate), fidelity, tuple(json.loads(parents)))


@contextmanager
def _sound(path: Path, row: str) -> Iterator[None]:
    """SQLite has no checksums: what cannot be understood is damage."""
    try:
        yield
    except (ValueError, TypeError, SettingError) as error:
        raise LedgerError(f"{path} is damaged: {row} cannot be understood ({error})") from error


def _check_finite(key: str, metrics: Mapping[str, float], per_window: Mapping[str, Array]) -> None:
    for metric, values in (*metrics.items(), *per_window.items()):
        if not np.isfinite(np.asarray(values)).all():
            raise LedgerError(
                f"metric {metric} of plan {key} is not finite: a status belongs here, not {values}"
            )


def _bytes(values: Array) -> bytes:
    return np.ascontiguousarray(values, dtype="<f8").tobytes()


def _array(data: bytes) -> Array:
    return np.frombuffer(data, dtype="<f8").copy()
