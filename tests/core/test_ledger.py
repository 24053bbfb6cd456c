"""The ledger: exact, atomic, and plain about what it cannot read."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import LedgerError
from autoprune.ledger import Ledger, Recorded, holds_run
from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.space import Candidate
from tests.core.runs import Killed, create, some, study
from tests.searchers.methods import make_random
from tests.tabular import tabular_problem

FITNESS = Fidelity(Split.FITNESS, (2, 5))
VALUES = np.array([0.1, 1 / 3, 1e-300])


def proposal(number: int = 0) -> Proposal:
    return Proposal(number, Candidate((1, 2, (0.1, 1 / 3))), FITNESS, parents=(7, 8))


def recorded(number: int = 0, **changes: object) -> Recorded:
    fields = {
        "metrics": {"kl": 1 / 3, "params": np.float64(7)},
        "per_window": {"nll": VALUES, "kl": -VALUES},
        **changes,
    }
    return Recorded(Result(proposal(number), Status.OK, **fields), "abc", "evaluated", 30)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run" / "ledger.sqlite"


@pytest.fixture
def ledger(path: Path) -> Iterator[Ledger]:
    path.parent.mkdir()
    found = create(path)
    yield found
    found.close()


def test_proposals_and_results_come_back_exactly(ledger: Ledger, path: Path) -> None:
    ledger.record_batch(0, 0, 4, [proposal(0), proposal(1)])
    ledger.record(0, recorded(1))
    ledger.close()
    again = Ledger.open(path)
    assert again.batches(0) == [(0, 4)] and again.proposals(0, 0) == [proposal(0), proposal(1)]
    ((number, found),) = again.results(0, 0).items()
    assert number == 1 and (found.key, found.origin, found.tokens) == ("abc", "evaluated", 30)
    assert found.result.metrics == {"kl": 1 / 3, "params": 7.0} and found.result.proposal == proposal(1)
    assert {m: v.tolist() for m, v in found.result.per_window.items()} == {
        "kl": (-VALUES).tolist(),
        "nll": VALUES.tolist(),
    }
    assert again.tokens() == 30 and again.meta()["model"] == "made-up"
    assert [(phase, r.key) for phase, r in again.recorded()] == [(0, "abc")]
    again.close()


def test_a_failure_keeps_its_reason(ledger: Ledger) -> None:
    ledger.record_batch(0, 0, 1, [proposal()])
    ledger.record(
        0, Recorded(Result(proposal(), Status.FAILED, reason="NaN in block 3"), "abc", "evaluated", 30)
    )
    found = ledger.results(0, 0)[0].result
    assert (found.status, found.reason, found.ok) == (Status.FAILED, "NaN in block 3", False)
    frame = ledger.to_frame()
    assert frame.loc[0, ["status", "reason", "stop"]].tolist() == ["failed", "NaN in block 3", 5]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused(ledger: Ledger, bad: float) -> None:
    ledger.record_batch(0, 0, 1, [proposal()])
    windows = np.array([0.1, bad, 0.2])
    for changes in ({"metrics": {"kl": bad}}, {"per_window": {"kl": windows}}):
        with pytest.raises(LedgerError, match="metric kl of plan abc is not finite"):
            ledger.record(0, recorded(**changes))
    for metrics, values in (({"kl": bad}, {}), ({}, {"kl": windows})):
        with pytest.raises(LedgerError, match="metric kl of plan abc is not finite"):
            ledger.record_final("abc", FITNESS, metrics, values)
    assert ledger.results(0, 0) == {} and ledger.finals(FITNESS) == {}


def test_finals_belong_to_their_windows(ledger: Ledger) -> None:
    other = Fidelity(Split.TEST, (2, 5))
    ledger.record_final("abc", FITNESS, {"kl": 0.5}, {"kl": VALUES})
    ledger.record_final("abc", other, {"kl": 0.75}, {})
    ledger.record_final("abc", FITNESS, {"kl": 0.25}, {})
    assert ledger.finals(FITNESS) == {"abc": {"kl": 0.25}} and ledger.finals(other) == {"abc": {"kl": 0.75}}
    assert ledger.finals(Fidelity(Split.FITNESS, (2, 4))) == {}
    assert ledger.final_windows() == 6


def test_events_and_telemetry(ledger: Ledger) -> None:
    ledger.event("searched", reason="tokens", n=np.int64(3))
    ledger.event("resumed")
    assert ledger.events("searched") == [{"reason": "tokens", "n": 3}] and ledger.events("other") == []
    ledger.record_telemetry(0, 0, seconds=1.5, runs=2.0)
    ledger.record_telemetry(0, 1, seconds=2.5)
    assert ledger.telemetry() == {"seconds": 4.0, "runs": 2.0}


def test_a_frame_has_a_row_a_result_with_all_metrics(ledger: Ledger) -> None:
    assert len(ledger.to_frame()) == 0
    ledger.record_batch(0, 0, 4, [proposal(0), proposal(1), proposal(2)])
    ledger.record(0, recorded(2))
    ledger.record(0, recorded(0, metrics={"kl": 0.5}))
    frame = ledger.to_frame()
    assert frame["id"].tolist() == [0, 2] and frame["kl"].tolist() == [0.5, 1 / 3]
    assert Candidate.from_json(frame["candidate"][0]) == proposal().candidate


def test_ordered_columns_know_no_clock_and_no_order_of_arrival(tmp_path: Path) -> None:
    rows = []
    for order in ((0, 1), (1, 0)):
        ledger = create(tmp_path / f"{order[0]}.sqlite")
        ledger.record_batch(0, 0, 4, [proposal(0), proposal(1)])
        for number in order:
            swapped = (
                dict(reversed(recorded().result.per_window.items()))
                if order[0]
                else recorded().result.per_window
            )
            ledger.record(0, recorded(number, per_window=swapped))
        ledger.record_telemetry(0, 0, seconds=float(order[0]))
        rows.append(ledger.ordered())
        ledger.close()
    assert rows[0] == rows[1] and len(rows[0]) == 2


def test_per_window_values_are_ordered_columns(ledger: Ledger) -> None:
    ledger.record_batch(0, 0, 4, [proposal(0)])
    ledger.record(0, recorded(0))
    before = ledger.ordered()
    with ledger._transaction() as db:
        db.execute("UPDATE blobs SET data = ? WHERE metric = 'nll'", (np.array([1.0, 2.0, 3.0]).tobytes(),))
    assert ledger.ordered() != before


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed, ValueError])
def test_a_write_that_is_interrupted_leaves_nothing_and_the_ledger_usable(
    ledger: Ledger, error: type[BaseException]
) -> None:
    def proposals() -> Iterator[Proposal]:
        yield proposal(0)
        raise error

    with pytest.raises(error):
        ledger.record_batch(0, 0, 4, Lazily(proposals))  # type: ignore[arg-type]
    assert ledger.batches(0) == [] and ledger.proposals(0, 0) == []
    ledger.event("interrupted")
    assert ledger.events("interrupted") == [{}]


class Lazily:
    """Iterates over what a generator yields, when asked."""

    def __init__(self, make: Callable[[], Iterator[Proposal]]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Proposal]:
        return self._make()


def test_the_same_result_twice_is_refused_whole(ledger: Ledger) -> None:
    ledger.record_batch(0, 0, 4, [proposal(0)])
    ledger.record(0, recorded(0, per_window={}))
    with pytest.raises(LedgerError, match="cannot be written: UNIQUE"):
        ledger.record(0, recorded(0))
    assert ledger.results(0, 0)[0].result.per_window == {}


def test_a_ledger_is_not_begun_twice(ledger: Ledger, path: Path) -> None:
    with pytest.raises(LedgerError, match=f"{path.parent} holds a run already; use `autoprune resume"):
        create(path)


def test_no_ledger_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="is not a run folder"):
        Ledger.open(tmp_path / "ledger.sqlite")
    assert not list(tmp_path.iterdir()), "looking for a ledger made one"


def test_what_a_crash_before_the_first_transaction_leaves_is_no_run(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode=WAL")
    db.close()
    assert path.exists() and not holds_run(path)
    with pytest.raises(LedgerError, match="is not a run folder"):
        Ledger.open(path)
    create(path).close()
    Ledger.open(path).close()
    assert holds_run(path)


def one_line(error: pytest.ExceptionInfo[LedgerError]) -> str:
    text = str(error.value)
    assert "\n" not in text and error.value.exit_code == 2
    return text


def long_run(path: Path) -> None:
    """A ledger of several hundred pages."""
    ledger = create(path)
    study(ledger, make_random(tabular_problem({"params": "0.7x"})))
    ledger.record_batch(1, 0, 900, [Proposal(i, c, FITNESS) for i, c in enumerate(some(900))])
    ledger.close()


@pytest.mark.parametrize("where", [0.3, 0.5, 0.8])
def test_a_damaged_page_is_found_when_opening(tmp_path: Path, where: float) -> None:
    path = tmp_path / "ledger.sqlite"
    long_run(path)
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(int(size * where) // 4096 * 4096)
        file.write(b"\xff" * 4096)
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path)
    assert "is damaged" in one_line(caught) and "recover" in str(caught.value)


@pytest.mark.parametrize("content", [b"not a database at all" * 400, b"\x00" * 5000])
def test_another_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_bytes(content)
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path)
    one_line(caught)


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    long_run(path)
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)
    with pytest.raises(LedgerError) as caught:
        Ledger.open(path)
    assert "malformed" in one_line(caught)


@pytest.mark.parametrize(
    ("column", "value", "named"),
    [
        ("proposals.candidate", "[1,", "proposal 0"),
        ("proposals.split", "fitnes", "proposal 0"),
        ("proposals.stop", 0, "proposal 0"),
        ("results.metrics", "{", "result 0"),
        ("results.status", "okay", "result 0"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(ledger: Ledger, column: str, value: object, named: str) -> None:
    ledger.record_batch(0, 0, 4, [proposal(0)])
    ledger.record(0, recorded(0))
    table, name = column.split(".")
    with ledger._transaction() as db:
        db.execute(f"UPDATE {table} SET {name} = ?", (value,))
    with pytest.raises(LedgerError, match="is damaged: " + named) as caught:
        list(ledger.recorded())
    one_line(caught)


def test_another_format_is_refused(ledger: Ledger, path: Path) -> None:
    with ledger._transaction() as db:
        db.execute("UPDATE meta SET value = '99' WHERE key = 'format'")
    ledger.close()
    with pytest.raises(LedgerError, match="has format 99, this version reads 1") as caught:
        Ledger.open(path)
    one_line(caught)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be opened") as caught:
        create(tmp_path / "missing" / "ledger.sqlite")
    one_line(caught)
