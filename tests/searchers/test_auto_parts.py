"""Each part of the flagship does what it is for: what breaks when it does nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoprune.objective import Array
from autoprune.searchers.anchors import PATIENCE, Anchor
from autoprune.searchers.auto import Auto
from autoprune.searchers.problem import Problem
from autoprune.searchers.race import Belief, Verdict
from autoprune.searchers.surrogate import Posterior
from autoprune.space import Candidate
from tests.searchers.methods import make_auto
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, structured_space, tabular_problem


def deep_problem(seed: int = 0) -> Problem:
    space = structured_space(dataclasses.replace(SHAPE, blocks=12))
    return tabular_problem({"params": "0.6x"}, (KL, PARAMS), seed, space)


class Watched(Auto):
    """Notes what each round was given and what it learnt."""

    def __init__(self, problem: Problem, **settings: Any) -> None:
        super().__init__(problem, **{"candidates": 8, "racers": 2, **settings})
        self.rounds: list[tuple[Candidate, list[Candidate], list[Belief]]] = []
        self.known: list[int] = []

    def _believed(self, posterior: Posterior, steps: Array) -> list[Belief]:
        found = super()._believed(posterior, steps)
        codes = steps + self._model.code(self._anchors[0].champion)
        last = self._model.width - 1
        plans = [Candidate(tuple(int(r.sum()) for r in code.reshape(-1, last))) for code in codes]
        self.rounds.append((self._anchors[0].champion, plans, found))
        self.known.append(len(posterior.gaps))
        return found


def watched(count: int = 700, kind: str = "pairwise", **settings: Any) -> tuple[Watched, Tabular]:
    problem = deep_problem()
    searcher, evaluate = Watched(problem, **settings), Tabular(problem.space, kind=kind)
    drive(searcher, evaluate, count)
    return searcher, evaluate


def test_every_round_learns_from_all_whom_it_met() -> None:
    searcher, _ = watched()
    met = np.cumsum([len(plans) for _, plans, _ in searcher.rounds])
    assert searcher.known[0] == 0
    assert all(0.5 * m < k <= m for k, m in zip(searcher.known[1:], met, strict=False)), (
        "pairs met again count once"
    )


def test_beliefs_tell_the_good_from_the_bad_before_they_run() -> None:
    searcher, evaluate = watched()
    agree = []
    for champion, plans, beliefs in searcher.rounds[2:]:
        if len(plans) > 3:
            true = [np.log(evaluate.loss(p) / evaluate.loss(champion)) for p in plans]
            agree.append(np.corrcoef([b.gap for b in beliefs], true)[0, 1])
    assert np.mean(agree) > 0.3, agree
    assert len({b.variance for _, _, beliefs in searcher.rounds for b in beliefs}) > len(searcher.rounds)


def test_a_round_tries_different_optima_of_what_may_be() -> None:
    searcher, _ = watched()
    full = [len(set(plans)) for _, plans, _ in searcher.rounds[:6]]
    assert np.mean(full) > 4, f"draws agree with the mean: {full}"


def test_caution_keeps_moves_small() -> None:
    def moved(caution: Sequence[float]) -> float:
        searcher, _ = watched(400, "noisy", caution=caution)
        steps = [
            np.abs(np.subtract(plan.indices(), champion.indices())).sum()
            for champion, plans, _ in searcher.rounds[:4]
            for plan in plans[1:]
        ]
        return float(np.mean(steps))

    assert moved((0.4, 2.0)) < 0.5 * moved((0.0, 0.0))


def test_patience_grows_with_every_race_that_changes_nothing_and_starts_anew() -> None:
    old, new = Candidate((1,)), Candidate((2,))
    anchor = Anchor(None, old)  # type: ignore[arg-type]
    for wanted in (2, 4, PATIENCE, PATIENCE):
        anchor.judge(Verdict(new, 0.1, 1.0))
        assert (anchor.champion, anchor.patience) == (old, wanted)
    anchor.judge(Verdict(None))
    assert anchor.patience == PATIENCE
    anchor.judge(Verdict(new, -0.1, 1.0))
    assert (anchor.champion, anchor.patience) == (new, 1) and list(anchor.past)[-1] == new


@pytest.mark.parametrize("patience", [1, 4])
def test_a_patient_race_may_last_longer(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    caps = []
    race = Auto._play.__globals__["race"]

    def noted(
        board: Any, champion: Any, racers: Any, beliefs: Any, noise: Any, windows: Any, rules: Any
    ) -> Any:
        caps.append(rules.cap)
        return race(board, champion, racers, beliefs, noise, windows, rules)

    monkeypatch.setitem(Auto._play.__globals__, "race", noted)
    problem = deep_problem()
    searcher, evaluate = make_auto(problem), Tabular(problem.space)
    while not searcher._anchors:
        searcher.tell([evaluate(p) for p in searcher.ask(64)])
    searcher._anchors[0].patience = patience
    while not caps:
        searcher.tell([evaluate(p) for p in searcher.ask(64)])
    assert caps[0] == min(4 * patience, problem.windows)
