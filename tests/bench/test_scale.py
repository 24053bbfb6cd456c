"""Simulated workers: their clock, their losses, and a real study on them."""

from __future__ import annotations

import dataclasses
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from autoprune.bench import scale, simulation
from autoprune.bench.paper import paper
from autoprune.bench.scale import SHAPE, Case, Measured, cases, ledger_rate, simulate
from autoprune.bench.simulation import Conditions, Simulated
from autoprune.errors import SettingError
from autoprune.ledger import FILE, Ledger
from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.space import Candidate, Plan
from autoprune.study import Job

SMALL = dataclasses.replace(SHAPE, blocks=6)
EVEN = Conditions(4, seconds=5.0, spread=0.0, stragglers=0.0, failures=0.0, call=0.0)
AHEAD = {"population": 16, "ahead": 4}


@pytest.fixture(autouse=True)
def a_driver_that_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation.time, "thread_time", lambda: 0.0)


def jobs(count: int) -> list[Job]:
    fidelity = Fidelity(Split.FITNESS, (0, 1))
    return [Job(Proposal(i, Candidate((i,)), fidelity), Plan.of([(1, 1)])) for i in range(count)]


def made(proposal: Proposal) -> Result:
    return Result(proposal, Status.OK, {"kl": 1.0})


def run(conditions: Conditions, count: int) -> tuple[Simulated, list[Result]]:
    executor = Simulated(conditions, made)
    executor.submit(jobs(count))
    return executor, list(executor.results())


def test_even_work_takes_as_many_rounds_as_it_needs() -> None:
    executor, results = run(EVEN, 10)
    assert [r.proposal.id for r in results] == list(range(10))
    assert executor.clock.now == pytest.approx(15.0) and executor.clock.useful == pytest.approx(50.0)
    assert executor.clock.sent == pytest.approx(10.0) and executor.clock.useful_sent == pytest.approx(40.0)


def test_what_the_driver_computes_keeps_idle_workers_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(float(i) for i in range(1000))
    monkeypatch.setattr(simulation.time, "thread_time", lambda: next(ticks))
    executor, _ = run(dataclasses.replace(EVEN, workers=1), 10)
    assert executor.clock.driver > 10 and executor.clock.now == pytest.approx(50 + executor.clock.driver)


def test_sending_off_costs_the_driver() -> None:
    assert run(dataclasses.replace(EVEN, call=0.1), 10)[0].clock.now == pytest.approx(15.4)


def test_a_dead_worker_s_evaluation_runs_again_and_fails_in_the_end() -> None:
    executor, results = run(dataclasses.replace(EVEN, failures=0.3, retries=50), 200)
    assert len(results) == 200 and all(r.ok for r in results)
    assert executor.clock.lost > 0.1 * executor.clock.useful
    _, some = run(dataclasses.replace(EVEN, failures=0.9), 20)
    assert len({r.proposal.id for r in some}) == len(some) == 20 and not all(r.ok for r in some)


def test_stragglers_and_recorded_durations() -> None:
    slow, _ = run(dataclasses.replace(EVEN, stragglers=0.5), 100)
    assert slow.clock.useful > 1.5 * 500
    drawn, _ = run(dataclasses.replace(EVEN, recorded=(1.0, 3.0)), 400)
    assert drawn.clock.useful == pytest.approx(2000, rel=0.1), "scaled to the mean that is asked for"


def test_durations_depend_on_the_proposal_only() -> None:
    conditions = Conditions(1)
    again = dataclasses.replace(conditions, workers=64)
    assert [conditions.attempt(i, 0) for i in range(20)] == [again.attempt(i, 0) for i in range(20)]


def test_nothing_is_waited_for_with_a_timeout_of_0() -> None:
    executor = Simulated(EVEN, made)
    executor.submit(jobs(3))
    assert list(executor.results(timeout=0)) == [] and executor.clock.sent == 0.0
    assert len(list(executor.results())) == 3


def measured(method: str, settings: dict[str, int], workers: int) -> Measured:
    conditions = dataclasses.replace(EVEN, workers=workers, failures=0.02)
    return simulate(Case(method, settings, conditions, 256), SMALL)


def test_asked_ahead_a_search_keeps_more_workers_busy_than_a_generation_has_members() -> None:
    waits, ahead = measured("nsga2", {"population": 16}, 32), measured("nsga2", AHEAD, 32)
    shares = [m.clock.useful_sent / (32 * m.clock.sent) for m in (waits, ahead)]
    assert shares[0] < 0.5 and shares[1] > 0.9, shares
    assert waits.evaluations == ahead.evaluations == 256


def test_one_ledger_whatever_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    original = Ledger.close
    monkeypatch.setattr(Ledger, "close", lambda self: rows.append(self.ordered()) or original(self))  # type: ignore[func-returns-value]
    for workers in (1, 7, 64):
        measured("nsga2", AHEAD, workers)
    assert rows[0] == rows[1] == rows[2] and len(rows[0]) >= 256


def test_rows_go_ahead_where_the_method_can() -> None:
    found = cases(["nsga2", "evopress", "auto"], dataclasses.replace(EVEN, workers=1024), 16)
    assert [(c.method, "ahead" in c.settings) for c in found] == [
        *(("nsga2", False), ("nsga2", True), ("evopress", False), ("auto", False))
    ]
    ahead = found[1].settings
    assert ahead["population"] * ahead["ahead"] >= 8 * 1024


def test_the_ledger_s_rate_is_counted() -> None:
    assert ledger_rate(64, SMALL) > 0


def test_durations_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="is not a run folder"):
        scale._recorded(tmp_path)
    ledger = Ledger.create(tmp_path / FILE, {})
    with pytest.raises(SettingError, match="no thread seconds"):
        scale._recorded(tmp_path)
    ledger.record_batch(0, 0, 2, [j.proposal for j in jobs(2)])
    ledger.record_telemetry(0, 0, thread_seconds=3.0)
    ledger.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        row = (0, 0, "k", "ok", "", "evaluated", 1, json.dumps({}))
        db.execute("INSERT INTO results VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)
        db.commit()
    assert scale._recorded(tmp_path) == (3.0,)


def test_the_document_holds_the_paper_s_numbers(root: Path) -> None:
    told = (root / "docs" / "scale.md").read_text(encoding="utf-8")
    assert paper() in told, "autoprune bench scale --paper says something else now"


def test_the_models_on_paper_have_their_published_sizes() -> None:
    assert "| 70.6B |" in paper() and "| 480.2B |" in paper()
