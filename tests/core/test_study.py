"""The loop: order, budgets, what is free, what is recorded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from autoprune.errors import LedgerError
from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Fidelity, Proposal, Result, Status
from autoprune.space import Candidate
from autoprune.study import IDLE, Budget
from tests.core.runs import (
    DENSE,
    PROBLEM,
    SEARCHERS,
    SPACE,
    TOKENS,
    FakeExecutor,
    Scripted,
    create,
    mixed,
    some,
    study,
)
from tests.tabular import Tabular

FREE = Budget()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = create(tmp_path / "ledger.sqlite")
    yield found
    found.close()


def test_results_are_told_in_proposal_order_with_costs(ledger: Ledger) -> None:
    searcher, executor = Scripted([some(4), some(8)[4:]]), FakeExecutor()
    assert study(ledger, searcher, executor, FREE) == "finished"
    assert [j.proposal.id for j in executor.seen] == [3, 2, 1, 0, 7, 6, 5, 4], (
        "the executor is meant to shuffle"
    )
    assert [r.proposal.id for r in searcher.told] == list(range(8))
    for result in searcher.told:
        expected = SPACE.cost(result.proposal.candidate)
        assert {m: result.metrics[m] for m in expected} == expected and "kl" in result.metrics


def test_a_violated_constraint_never_reaches_the_executor_and_is_free(ledger: Ledger) -> None:
    good = some(2)
    searcher, executor = Scripted([(good[0], DENSE, good[1])]), FakeExecutor()
    study(ledger, searcher, executor, FREE)
    assert DENSE not in [j.proposal.candidate for j in executor.seen] and len(executor.seen) == 2
    told = searcher.told[1]
    assert (told.proposal.candidate, told.status) == (DENSE, Status.INFEASIBLE)
    limit = PROBLEM.constraints[0]
    assert told.reason == f"params={SPACE.cost(DENSE)['params']:.6g} exceeds {limit.bound:.6g}"
    assert told.metrics == SPACE.cost(DENSE)
    row = ledger.results(0, 0)[1]
    assert (row.origin, row.tokens) == ("constraint", 0) and ledger.tokens() == 2 * 2 * TOKENS


def test_repeats_are_answered_from_memory_for_free(ledger: Ledger) -> None:
    a, b = some(2)
    searcher, executor = Scripted([(a, b, a), (b, a)]), FakeExecutor()
    study(ledger, searcher, executor, FREE)
    assert sorted(j.proposal.id for j in executor.seen) == [0, 1]
    origins = {n: (r.origin, r.tokens) for batch in (0, 1) for n, r in ledger.results(0, batch).items()}
    paid, free = ("evaluated", 2 * TOKENS), ("memory", 0)
    assert origins == {0: paid, 1: paid, 2: free, 3: free, 4: free}
    by_id = {r.proposal.id: r for r in searcher.told}
    for repeat, source in ((2, 0), (3, 1), (4, 0)):
        assert by_id[repeat].metrics == by_id[source].metrics
        assert by_id[repeat].per_window["kl"].tolist() == by_id[source].per_window["kl"].tolist()
        assert by_id[repeat].proposal.id == repeat


class _Refining(Scripted):
    """The same candidate on one window more each time."""

    def ask(self, n: int) -> list[Proposal]:
        found = super().ask(n)
        self._fidelity = Fidelity(self._fidelity.split, (0, self._fidelity.windows[1] + 1))
        return found


def test_other_windows_are_another_evaluation(ledger: Ledger) -> None:
    (a,) = some(1)
    executor = FakeExecutor()
    study(ledger, _Refining([(a,), (a,), (a,)], windows=1), executor, FREE)
    assert [j.proposal.fidelity.count for j in executor.seen] == [1, 2, 3]
    assert ledger.tokens() == 6 * TOKENS


def test_a_failure_is_a_row_with_its_reason_and_is_paid_for(ledger: Ledger) -> None:
    bad, good = some(2)
    searcher = Scripted([(bad, good), (bad,)])
    executor = FakeExecutor(fails=lambda p: p.candidate == bad)
    study(ledger, searcher, executor, FREE)
    assert [r.status for r in searcher.told] == [Status.FAILED, Status.OK, Status.FAILED]
    first, again = ledger.results(0, 0)[0], ledger.results(0, 1)[2]
    assert first.result.reason == "the model said NaN" == again.result.reason
    assert (first.tokens, again.tokens, again.origin) == (2 * TOKENS, 0, "memory")
    assert len(executor.seen) == 2


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("windows", [1, 7, 20, 63])
def test_the_token_budget_is_used_and_never_exceeded(ledger: Ledger, name: str, windows: int) -> None:
    reason = study(ledger, SEARCHERS[name](), budget=Budget(tokens=windows * TOKENS))
    spent = ledger.tokens() // TOKENS
    assert spent <= windows
    assert reason == "tokens" and windows - spent < 4 or (name, reason) == ("mixed", "finished")


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("limit", [1, 2, 7, 24])
def test_the_evaluation_budget_is_used_exactly(ledger: Ledger, name: str, limit: int) -> None:
    executor = FakeExecutor()
    reason = study(ledger, SEARCHERS[name](), executor, Budget(evaluations=limit))
    if name == "mixed" and limit > 7:
        assert (reason, len(executor.seen)) == ("finished", 8)
    else:
        assert (reason, len(executor.seen)) == ("evaluations", limit)


def test_free_proposals_after_the_last_affordable_one_are_dropped_with_it(ledger: Ledger) -> None:
    a, b, c, d = some(4)
    study(ledger, Scripted([(a, a, DENSE, b, a, c, a, d)]), budget=Budget(evaluations=2))
    assert [p.candidate for p in ledger.proposals(0, 0)] == [a, a, DENSE, b, a]


def test_no_time_no_search(ledger: Ledger) -> None:
    executor = FakeExecutor()
    assert study(ledger, SEARCHERS["random"](), executor, Budget(seconds=0.0)) == "seconds"
    assert executor.seen == [] and ledger.batches(0) == []


class _Stuck(Scripted):
    def ask(self, n: int) -> list[Proposal]:
        self._batches = [some(2), some(2)]
        return super().ask(n)


def test_a_searcher_that_only_repeats_itself_is_stopped(ledger: Ledger) -> None:
    executor = FakeExecutor()
    assert study(ledger, _Stuck([[]]), executor, FREE) == "exhausted"
    assert len(executor.seen) == 2 and len(ledger.batches(0)) == IDLE + 1


def test_a_searcher_that_asks_for_nothing_is_done(ledger: Ledger) -> None:
    assert study(ledger, Scripted([some(2), []]), budget=FREE) == "finished"
    assert len(ledger.batches(0)) == 1


class _Watcher:
    def __init__(self) -> None:
        self.heard: list[tuple[int, int, int]] = []

    def update(self, tokens: int, evaluations: int, results: Sequence[Result]) -> None:
        self.heard.append((tokens, evaluations, len(results)))


def test_a_watcher_hears_totals_after_every_batch(ledger: Ledger) -> None:
    a, b, c = some(3)
    watcher = _Watcher()
    study(ledger, Scripted([(a, a, DENSE), (b, c)]), budget=FREE, watcher=watcher)
    assert watcher.heard == [(2 * TOKENS, 1, 3), (6 * TOKENS, 3, 2)]


def test_telemetry_is_kept_apart(ledger: Ledger) -> None:
    study(ledger, mixed(), budget=FREE)
    assert set(ledger.telemetry()) == {"seconds", "block_runs"}
    assert ledger.telemetry()["block_runs"] == 3, "batches that needed no evaluation have no telemetry"


class _Losing(FakeExecutor):
    def results(self, timeout: float | None = None) -> Iterator[Result]:
        found = list(super().results(timeout))
        yield from found[1:]


def test_an_executor_that_loses_a_result_is_noticed(ledger: Ledger) -> None:
    with pytest.raises(RuntimeError, match=r"no result for proposals \[3\]"):
        study(ledger, Scripted([some(4)]), _Losing(), FREE)


class _Lying(FakeExecutor):
    def _result(self, proposal: Proposal) -> Result:
        return Result(proposal, Status.OK, {"kl": float("nan")})


def test_nan_from_an_executor_never_enters(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match="metric kl of plan .* is not finite"):
        study(ledger, Scripted([some(1)]), _Lying(), FREE)
    assert ledger.results(0, 0) == {}


def adoptable(source: Ledger) -> dict[tuple[str, Fidelity], Recorded]:
    return {(r.key, r.result.proposal.fidelity): r for _, r in source.recorded() if r.origin == "evaluated"}


@pytest.mark.parametrize("name", SEARCHERS)
def test_adopted_evaluations_count_and_run_nothing(ledger: Ledger, tmp_path: Path, name: str) -> None:
    reason = study(ledger, SEARCHERS[name]())
    fork, executor = create(tmp_path / "fork.sqlite"), FakeExecutor()
    assert study(fork, SEARCHERS[name](), executor, adopted=adoptable(ledger)) == reason
    assert executor.seen == [] and fork.tokens() == ledger.tokens()
    origin = 11
    for ours, theirs in zip(fork.ordered(), ledger.ordered(), strict=True):
        assert ours[:origin] == theirs[:origin] and ours[origin + 1 :] == theirs[origin + 1 :]
        assert (ours[origin], theirs[origin]) in {
            ("adopted", "evaluated"),
            ("memory",) * 2,
            ("constraint",) * 2,
        }
    fork.close()


def test_adopted_evaluations_are_priced_anew(ledger: Ledger, tmp_path: Path) -> None:
    """A fork may have another latency table than the run that it takes evaluations from."""
    study(ledger, Scripted([some(2)]), budget=FREE)
    with ledger._transaction() as db:
        db.execute("UPDATE results SET metrics = json_set(metrics, '$.decode', 99.0)")
    fork, searcher = create(tmp_path / "fork.sqlite"), Scripted([some(2)])
    study(fork, searcher, budget=FREE, adopted=adoptable(ledger))
    for result in searcher.told:
        assert result.metrics["decode"] == SPACE.cost(result.proposal.candidate)["decode"] != 99.0
    assert {r.origin for _, r in fork.recorded()} == {"adopted"}
    fork.close()


def test_what_was_not_adopted_is_evaluated(ledger: Ledger, tmp_path: Path) -> None:
    study(ledger, SEARCHERS["random"]())
    known = adoptable(ledger)
    half = dict(list(known.items())[::2])
    fork, executor = create(tmp_path / "fork.sqlite"), FakeExecutor()
    study(fork, SEARCHERS["random"](), executor, adopted=half)
    assert len(executor.seen) == len(known) - len(half) and fork.tokens() == ledger.tokens()
    fork.close()


def test_the_fake_is_a_loss_of_the_candidate_on_its_windows(ledger: Ledger) -> None:
    """The tests above would mean little if all results were alike."""
    study(ledger, SEARCHERS["evopress"]())
    losses = ledger.to_frame().query("status == 'ok'")
    assert losses["kl"].nunique() > 20
    row = losses.iloc[-1]
    exact = Tabular(SPACE).loss(Candidate.from_json(row["candidate"]))
    assert 0.85 * exact < row["kl"] < 1.15 * exact and np.isfinite(row["params"])
