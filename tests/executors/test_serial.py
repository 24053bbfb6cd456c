"""The serial executor: one evaluation call a fidelity, every job answered."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest

from autoprune.executors.base import Spec
from autoprune.executors.serial import Serial
from autoprune.objective import Fidelity, Proposal, Split, Status
from autoprune.space import Candidate, Plan
from autoprune.study import Job

FEW, MANY = Fidelity(Split.FITNESS, (0, 2)), Fidelity(Split.FITNESS, (0, 4))


class FakeEvaluation:
    """Scores a plan by the width of its block; width 0 fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], Fidelity]] = []
        self.supernet = SimpleNamespace(telemetry=SimpleNamespace(runs=0, naive_runs=0))

    sequences = 8

    def evaluate(self, plans: Sequence[Plan], fidelity: Fidelity, sequences: int) -> list[SimpleNamespace]:
        widths = [plan.widths()[0][1] for plan in plans]
        self.calls.append((widths, fidelity))
        self.supernet.telemetry.runs += len(plans)
        self.supernet.telemetry.naive_runs += 3 * len(plans)
        return [self._outcome(w, fidelity.count) for w in widths]

    @staticmethod
    def _outcome(width: int, count: int) -> SimpleNamespace:
        if not width:
            return SimpleNamespace(reason="nothing is left")
        return SimpleNamespace(
            metrics={"kl": 1 / width}, per_window={"kl": np.full(count, 1 / width)}, note=""
        )


def job(number: int, width: int, fidelity: Fidelity) -> Job:
    return Job(Proposal(number, Candidate((width,)), fidelity), Plan.of([(1, width)]))


def opened(evaluation: FakeEvaluation) -> Serial:
    executor = Serial()
    executor.open(evaluation, Spec({}, {}, ""))  # type: ignore[arg-type]
    return executor


@pytest.fixture
def evaluation() -> FakeEvaluation:
    return FakeEvaluation()


def test_jobs_on_the_same_windows_go_together(evaluation: FakeEvaluation) -> None:
    executor = opened(evaluation)
    executor.submit([job(0, 4, FEW), job(1, 8, MANY)])
    executor.submit([job(2, 2, FEW)])
    found = {r.proposal.id: r for r in executor.results()}
    assert evaluation.calls == [([4, 2], FEW), ([8], MANY)]
    assert {n: r.metrics["kl"] for n, r in found.items()} == {0: 1 / 4, 1: 1 / 8, 2: 1 / 2}
    assert [len(found[n].per_window["kl"]) for n in range(3)] == [2, 4, 2]
    assert found[1].proposal == job(1, 8, MANY).proposal and found[1].ok


def test_a_failure_keeps_its_reason(evaluation: FakeEvaluation) -> None:
    executor = opened(evaluation)
    executor.submit([job(0, 0, FEW), job(1, 2, FEW)])
    failed, fine = executor.results()
    assert (failed.status, failed.reason, failed.metrics) == (Status.FAILED, "nothing is left", {})
    assert fine.ok


def test_a_job_is_run_once(evaluation: FakeEvaluation) -> None:
    executor = opened(evaluation)
    executor.submit([job(0, 4, FEW)])
    assert len(list(executor.results())) == 1 and list(executor.results()) == []


def test_counters_since_the_last_call(evaluation: FakeEvaluation) -> None:
    executor = opened(evaluation)
    for expected in (1, 2):
        executor.submit([job(i, 4, FEW) for i in range(2 * expected)])
        list(executor.results())
        counted = executor.counters()
        assert counted.pop("thread_seconds") > 0
        assert counted == {"block_runs": expected, "block_runs_naive": 3 * expected}
    assert executor.counters() == {"block_runs": 0, "block_runs_naive": 0, "thread_seconds": 0}
