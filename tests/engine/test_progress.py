"""What a run shows: lines that stay, and the best point so far."""

from __future__ import annotations

import pytest

from autoprune.objective import Fidelity, Objective, Proposal, Result, Split, Status
from autoprune.progress import Progress, SearchBar
from autoprune.space import Candidate

KL, PARAMS = Objective("kl"), Objective("params")


def result(kl: float, params: float, status: Status = Status.OK) -> Result:
    proposal = Proposal(0, Candidate((0,)), Fidelity(Split.FITNESS, (0, 1)))
    return Result(proposal, status, {"kl": kl, "params": params} if status is Status.OK else {})


def shown(objectives: tuple[Objective, ...], results: list[Result]) -> tuple[int, str]:
    said: list[tuple[int, str]] = []
    bar = SearchBar(lambda done, note: said.append((done, note)), objectives, {"params": 100.0})
    bar.update(640, 5, results)
    bar.update(1280, 9, [])
    return said[-1]


def test_the_best_point_is_that_of_at_most_six_tenths() -> None:
    results = [result(0.1, 61), result(0.3, 60), result(0.2, 50), result(0.0, 10, Status.FAILED)]
    assert shown((KL, PARAMS), results) == (1280, "9 plans, best kl 0.200 at <= 0.6x params")


def test_nothing_is_claimed_before_there_is_a_point() -> None:
    assert shown((KL, PARAMS), [result(0.1, 61)]) == (1280, "9 plans")


def test_one_objective_has_no_limit() -> None:
    assert shown((KL,), [result(0.4, 99), result(0.5, 1)]) == (1280, "9 plans, best kl 0.400")


def test_lines_go_to_stderr_unless_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress() as progress, progress.stage("working") as step:
        step(1, 2)
        progress.say("done [1/2]")
    with Progress(quiet=True) as progress:
        progress.say("hidden")
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == ["done [1/2]"]
