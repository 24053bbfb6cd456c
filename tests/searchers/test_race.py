"""Races: windows in line, paired gaps, who leaves and when it ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from autoprune.objective import Fidelity, Objective, Proposal, Result, Split, Status
from autoprune.searchers.race import Belief, Board, Rules, Verdict, Windows, confirmed, estimate, race
from autoprune.space import Candidate

COUNT = 40
VAGUE = Belief(0.0, 1.0)
LEVEL = np.random.default_rng(1).normal(0.0, 1.0, COUNT)  # windows differ a hundred times more than plans do


def plan(number: int) -> Candidate:
    return Candidate((number,))


def result(candidate: Candidate, fidelity: Fidelity, values: Sequence[float], ok: bool = True) -> Result:
    proposal = Proposal(0, candidate, fidelity)
    if not ok:
        return Result(proposal, Status.FAILED, reason="asked to")
    return Result(proposal, Status.OK, {"kl": float(np.mean(values))}, {"kl": np.array(values)})


def run(
    effects: dict[int, float],
    noise: float = 0.01,
    rules: Rules = Rules(),  # noqa: B008
    beliefs: dict[int, Belief] | None = None,
    fails: Callable[[Candidate], bool] = lambda c: False,
) -> tuple[Verdict, list[int]]:
    """A race of plans with these effects against plan 0; the verdict and the size of every batch."""
    rng, board, batches = np.random.default_rng(0), Board(Objective("kl"), log=False), []
    contenders = [plan(n) for n in effects]
    given = [(beliefs or {}).get(n, VAGUE) for n in effects]
    script = race(board, plan(0), contenders, given, noise**2, Windows(COUNT, 0), rules)
    trials = next(script)
    while True:
        batches.append(len(trials))
        told = []
        for trial in trials:
            start, stop = trial.fidelity.windows
            own = {0: 0.0, **effects}[trial.candidate.indices()[0]]
            values = LEVEL[start:stop] + own + rng.normal(0.0, noise / 2, stop - start)
            told.append(result(trial.candidate, trial.fidelity, values.tolist(), not fails(trial.candidate)))
        try:
            trials = script.send(told)
        except StopIteration as stop_:
            return stop_.value, batches


def test_windows_go_in_line_and_around() -> None:
    windows = Windows(10, seed=4)
    seen = [windows.fresh(3).windows for _ in range(20)]
    assert all(0 <= a < b <= 10 and b - a == 3 for a, b in seen)
    assert len({a for a, _ in seen}) >= 3 and seen == [w.windows for w in map(Windows(10, 4).fresh, [3] * 20)]
    assert Windows(10, 0).fresh(99).count == 10
    assert len({Windows(1000, s).fresh(1).windows for s in range(8)}) > 4, (
        "every seed starts at the same window"
    )


def test_gaps_pair_common_windows_only() -> None:
    board = Board(Objective("kl"), log=True)
    board.add([result(plan(0), Fidelity(Split.FITNESS, (0, 2)), [1.0, 2.0])])
    board.add([result(plan(1), Fidelity(Split.FITNESS, (1, 3)), [4.0, 8.0])])
    assert board.gaps(plan(1), plan(0)) == pytest.approx([np.log(2.0)])
    board.add([result(plan(0), Fidelity(Split.FITNESS, (2, 3)), [4.0])])
    assert board.gaps(plan(1), plan(0)) == pytest.approx(np.log([2.0, 2.0]))
    assert not len(board.gaps(plan(2), plan(0))) and board.level(plan(2)) == np.inf


def test_failures_and_metrics_without_windows() -> None:
    board, fidelity = Board(Objective("accuracy", maximise=True), log=False), Fidelity(Split.FITNESS, (0, 2))
    board.add([Result(Proposal(0, plan(0), fidelity), Status.OK, {"accuracy": 0.5})])
    board.add([result(plan(1), fidelity, [1.0, 1.0], ok=False)])
    assert board.level(plan(0)) == -0.5 and board.level(plan(1)) == np.inf


def test_a_clear_leader_ends_it_early_and_a_close_race_at_the_cap() -> None:
    verdict, clear = run({1: -0.05, 2: 0.05})
    assert verdict.leader == plan(1) and verdict.gap == pytest.approx(-0.05, abs=0.01)
    assert len(clear) < 4
    verdict, close = run({1: -1e-4, 2: 1e-4})
    assert len(close) == Rules().cap // Rules().chunk


def test_without_anyone_better_it_ends_early_too() -> None:
    verdict, batches = run({1: 0.05, 2: 0.08})
    assert verdict.leader == plan(1) and verdict.gap > 0 and len(batches) < 4


def test_who_is_clearly_behind_leaves() -> None:
    _, batches = run({1: -1e-4, 2: 0.2, 3: 0.2, 4: 0.2})
    assert batches[0] == 5 and batches[-1] < 4


def test_beliefs_outweigh_little_evidence_only() -> None:
    few, many = np.full(1, -0.02), np.full(64, -0.02)
    doubtful = Belief(0.02, 0.01**2)
    assert estimate(few, doubtful, 0.02**2).gap > 0 > estimate(many, doubtful, 0.02**2).gap
    assert estimate(few, doubtful, 0.02**2).variance < doubtful.variance


def test_the_failing_leave_and_a_failing_champion_ends_it() -> None:
    verdict, _ = run({1: -0.05, 2: -0.02}, fails=lambda c: c == plan(1))
    assert verdict.leader == plan(2)
    verdict, batches = run({1: -0.05}, fails=lambda c: c == plan(0))
    assert verdict.leader is None and len(batches) == 1
    verdict, _ = run({1: -0.05}, fails=lambda c: c == plan(1))
    assert verdict.leader is None


def lucky(count: int, fresh: list[float], met: int = 0) -> tuple[Verdict, list[tuple[int, int]]]:
    """Confirms plan 1, ahead by 0.02 in its race, with these gaps on fresh windows; also the windows asked for."""
    board, windows, asked = Board(Objective("kl"), log=False), Windows(COUNT, 0), []
    before = windows.fresh(met or 1)
    board.add([result(plan(n), before, [-0.02 * n] * before.count) for n in (0, 1)])
    script = confirmed(board, plan(0), Verdict(plan(1), -0.02, 1e-4), windows, count)
    try:
        trials = next(script)
        while True:
            asked += [t.fidelity.windows for t in trials]
            trials = script.send(
                [
                    result(t.candidate, t.fidelity, fresh if t.candidate == plan(1) else [0.0] * count)
                    for t in trials
                ]
            )
    except StopIteration as stop:
        return stop.value, asked


def test_a_confirmation_goes_by_its_own_windows_alone() -> None:
    spoken_against, asked = lucky(2, [0.01, 0.0])
    assert spoken_against == Verdict(plan(1), pytest.approx(0.005), 1e-4), "on all windows it is still ahead"
    assert len(set(asked)) == 1 and len(asked) == 2
    assert lucky(2, [-0.03, 0.01])[0] == Verdict(plan(1), -0.02, 1e-4)
    assert lucky(0, []) == (Verdict(plan(1), -0.02, 1e-4), [])


def test_windows_that_were_met_before_confirm_nothing() -> None:
    assert lucky(COUNT, [5.0] * COUNT, met=COUNT)[0] == Verdict(plan(1), -0.02, 1e-4)


def test_a_race_ends_with_a_confirmation_of_who_is_better_only() -> None:
    rules = Rules(confirm=5)
    _, plain = run({1: -0.05, 2: 0.05})
    verdict, batches = run({1: -0.05, 2: 0.05}, rules=rules)
    assert verdict.leader == plan(1) and verdict.gap < 0 and batches == [*plain, 2]
    assert run({1: 0.05, 2: 0.08}, rules=rules) == run({1: 0.05, 2: 0.08})


def test_who_fails_when_confirmed_has_not_won() -> None:
    """Its windows in the race were fine; a plan may overflow on others."""
    seen: list[Candidate] = []

    def fails(candidate: Candidate) -> bool:
        seen.append(candidate)
        return candidate == plan(1) and seen.count(candidate) > 1

    verdict, _ = run({1: -0.05}, rules=Rules(chunk=8, cap=8, confirm=4), fails=fails)
    assert verdict.leader is None
