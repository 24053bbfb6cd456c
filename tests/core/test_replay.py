"""Kill a run anywhere and go on: the ledger ends as if nothing had happened."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import LedgerError
from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Proposal
from autoprune.study import IDLE, Budget
from tests.core.runs import (
    LIMITED,
    SEARCHERS,
    TOKENS,
    FakeExecutor,
    Killed,
    Scripted,
    create,
    resumed,
    some,
    study,
)

SMALL = Budget(tokens=27 * TOKENS)  # odd, so that a batch is cut short in the end


class Dying(Ledger):
    """Dies at its n-th write."""

    def arm(self, write: int) -> Dying:
        """Set the point of death."""
        self._left, self.died = write, False
        return self

    def _write(self, name: str, *args: Any, **payload: Any) -> None:
        self._left -= 1
        if self._left == 0:
            self.died = True
            raise Killed
        getattr(Ledger, name)(self, *args, **payload)

    def record_batch(self, *args: Any) -> None:
        self._write("record_batch", *args)

    def record(self, phase: int, recorded: Recorded) -> None:
        self._write("record", phase, recorded)

    def record_telemetry(self, *args: Any, **payload: float) -> None:
        self._write("record_telemetry", *args, **payload)


def whole(path: Path, name: str, budget: Budget = LIMITED) -> list[tuple[Any, ...]]:
    """The ordered columns of a run that nothing stops."""
    ledger = create(path)
    study(ledger, SEARCHERS[name](), budget=budget)
    rows = ledger.ordered()
    ledger.close()
    return rows


def killed_at(path: Path, name: str, write: int) -> bool:
    """Run until the n-th write; whether it was reached."""
    create(path).close()
    ledger = Dying(path).arm(write)
    try:
        study(ledger, SEARCHERS[name](), budget=SMALL)
    except Killed:
        assert ledger.died
    ledger.close()
    return ledger.died


@pytest.mark.parametrize("name", SEARCHERS)
def test_killed_at_every_write(tmp_path: Path, name: str) -> None:
    """Before the n-th write is after the one before it: nothing else is kept in between."""
    expected = whole(tmp_path / "whole.sqlite", name, SMALL)
    assert len(expected) >= 7 and all(row[8] is not None for row in expected)
    write = 1
    while killed_at(tmp_path / f"{write}.sqlite", name, write):
        assert resumed(tmp_path / f"{write}.sqlite", name, SMALL) == expected, f"killed at write {write}"
        write += 1
    assert write > len(expected), "every result is a write of its own"


@pytest.mark.parametrize("name", SEARCHERS)
def test_killed_in_the_executor_at_every_evaluation(tmp_path: Path, name: str) -> None:
    expected = whole(tmp_path / "whole.sqlite", name, SMALL)
    paid = [row for row in expected if row[11] == "evaluated"]
    for count in range(len(paid)):
        path = tmp_path / f"{count}.sqlite"
        ledger = create(path)
        with pytest.raises(Killed):
            study(ledger, SEARCHERS[name](), FakeExecutor(die_after=count), SMALL)
        ledger.close()
        assert resumed(path, name, SMALL) == expected, f"killed at evaluation {count}"


def test_killed_again_and_again(tmp_path: Path) -> None:
    expected = whole(tmp_path / "whole.sqlite", "evopress")
    path = tmp_path / "often.sqlite"
    create(path).close()
    deaths = 0
    for _ in range(1000):
        ledger = Dying(path).arm(4)
        try:
            study(ledger, SEARCHERS["evopress"]())
        except Killed:
            deaths += 1
        finally:
            ledger.close()
        if not ledger.died:
            break
    assert deaths > 10 and resumed(path, "evopress") == expected


@pytest.mark.parametrize(("name", "statement"), [("evopress", 12), ("mixed", 43), ("random", 77)])
def test_killed_for_good(tmp_path: Path, root: Path, name: str, statement: int) -> None:
    """SIGKILL between two statements, so in the middle of a transaction."""
    path = tmp_path / "ledger.sqlite"
    command = [sys.executable, "-m", "tests.core.runs", str(path), name, str(statement)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    ledger = Ledger.open(path)
    stored = ledger.ordered()
    ledger.close()
    expected = whole(tmp_path / "whole.sqlite", name)
    assert len(stored) > 0 and stored != expected
    assert resumed(path, name) == expected


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_finished_run_replays_without_evaluating(tmp_path: Path, name: str) -> None:
    path = tmp_path / "ledger.sqlite"
    expected = whole(path, name)
    ledger, executor = Ledger.open(path), FakeExecutor()
    study(ledger, SEARCHERS[name](), executor)
    assert executor.seen == [] and ledger.ordered() == expected
    ledger.close()


@pytest.mark.parametrize(
    "budget", [Budget(evaluations=6), Budget(tokens=13 * TOKENS)], ids=["evaluations", "tokens"]
)
@pytest.mark.parametrize("name", SEARCHERS)
def test_a_batch_that_the_budget_cut_short_stays_so(tmp_path: Path, name: str, budget: Budget) -> None:
    path = tmp_path / "ledger.sqlite"
    expected = whole(path, name, budget)
    ledger, executor = Ledger.open(path), FakeExecutor()
    reason = study(ledger, SEARCHERS[name](), executor, budget)
    assert (reason, executor.seen, ledger.ordered()) == (
        "tokens" if budget.tokens else "evaluations",
        [],
        expected,
    )
    ledger.close()


@pytest.mark.parametrize(("name", "asks"), [("tpe", 1), ("evopress", 10)])
def test_the_memoryless_are_asked_for_the_last_batch_only(tmp_path: Path, name: str, asks: int) -> None:
    path = tmp_path / "ledger.sqlite"
    budget = Budget(evaluations=48)
    whole(path, name, budget)
    searcher, asked = SEARCHERS[name](), []
    original = searcher.ask
    searcher.ask = lambda n: asked.append(n) or original(n)  # type: ignore[method-assign,func-returns-value]
    ledger = Ledger.open(path)
    study(ledger, searcher, FakeExecutor(), budget)
    assert len(asked) == asks if asks == 1 else len(asked) >= asks
    ledger.close()


def test_a_memoryless_searcher_that_diverges_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    rows = whole(path, "tpe", SMALL)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results SET metrics = json_set(metrics, '$.kl', 1e9) WHERE id = 9")
        last = max(row[1] for row in rows)
        db.execute("UPDATE proposals SET candidate = '[0,0,0,0,0,0,0,0]' WHERE batch = ?", (last,))
    db.close()
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="diverges at proposal"):
        study(ledger, SEARCHERS["tpe"](), budget=SMALL)
    ledger.close()


class _Stuck(Scripted):
    def ask(self, n: int) -> list[Proposal]:
        self._batches = [some(2), some(2)]
        return super().ask(n)


def test_an_exhausted_run_stays_so(tmp_path: Path) -> None:
    for _ in range(2):
        path = tmp_path / "ledger.sqlite"
        ledger = Ledger.open(path) if path.exists() else create(path)
        assert study(ledger, _Stuck([[]])) == "exhausted"
        assert len(ledger.batches(0)) == IDLE + 1
        ledger.close()


def tampered(path: Path, statement: str) -> None:
    """A finished evopress run with something changed in it."""
    whole(path, "evopress")
    with sqlite3.connect(path) as db:
        assert db.execute(statement).rowcount == 1
    db.close()


@pytest.mark.parametrize(
    ("statement", "number"),
    [
        ("UPDATE proposals SET candidate = '[0,0,0,0,0,0,0,0]' WHERE id = 5", 5),
        ("UPDATE proposals SET stop = stop + 1 WHERE id = 9", 9),
        ("UPDATE proposals SET parents = '[1]' WHERE id = 0", 0),
        ("DELETE FROM proposals WHERE id = 4", 4),
        (
            "INSERT INTO proposals SELECT phase, 1000, batch, candidate, split, start, stop, parents"
            " FROM proposals WHERE id = 0",
            1000,
        ),
    ],
)
def test_divergence_names_the_proposal(tmp_path: Path, statement: str, number: int) -> None:
    path = tmp_path / "ledger.sqlite"
    tampered(path, statement)
    ledger, executor = Ledger.open(path), FakeExecutor()
    with pytest.raises(LedgerError, match=f"diverges at proposal {number} .*resume --fork NEW") as caught:
        study(ledger, SEARCHERS["evopress"](), executor)
    assert "\n" not in str(caught.value) and executor.seen == []
    ledger.close()


def test_a_result_that_changed_is_noticed_in_what_follows(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    expected = whole(path, "evopress")
    children = [row for row in expected if row[1] == 1]
    best = min(children, key=lambda row: json.loads(row[13])["kl"])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE results SET metrics = json_set(metrics, '$.kl', 1e9) WHERE id = ?", (best[2],))
    db.close()
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="diverges at proposal"):
        study(ledger, SEARCHERS["evopress"]())
    ledger.close()


def test_another_searcher_diverges_at_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    whole(path, "random")
    ledger = Ledger.open(path)
    with pytest.raises(LedgerError, match="diverges at proposal"):
        study(ledger, SEARCHERS["evopress"]())
    ledger.close()
