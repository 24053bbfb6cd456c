"""From the search's results to a front: what becomes a finalist, what is shown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from autoprune.allocation import Allocation
from autoprune.evaluation import Failure, Scores
from autoprune.ledger import Ledger
from autoprune.objective import Fidelity, Objective, Split, dominates
from autoprune.run.finals import (
    EXTRA,
    Entry,
    Scorer,
    baseline_entries,
    best_of,
    finalist,
    finalists,
    front_of,
    quality_metric,
    thin,
)
from autoprune.space import Candidate, Plan
from tests.tabular import KL, PARAMS, structured_space

SPACE = structured_space()
OBJECTIVES = (KL, PARAMS)
SELECTION = Fidelity(Split.SELECTION, (0, 3))


def candidates(count: int, seed: int = 0) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    rows = [tuple(int(rng.integers(last + 1)) for last in SPACE.dense.indices()) for _ in range(count)]
    return list(dict.fromkeys(map(Candidate, rows)))


def row(candidate: Candidate, kl: float, **changes: Any) -> dict[str, Any]:
    """A ledger row on windows 0..8."""
    plain = {
        "candidate": candidate.to_json(),
        "key": SPACE.decode(candidate).key,
        "status": "ok",
        "start": 0,
        "stop": 8,
    }
    return {**plain, "kl": kl, **SPACE.cost(candidate), **changes}


def random_scores(found: Sequence[Candidate], seed: int = 1) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(seed)
    return {
        SPACE.decode(c).key: {"kl": float(rng.uniform(0.1, 1)), "nll": float(rng.uniform(2, 3))}
        for c in found
    }


@pytest.mark.parametrize("limit", [2, 3, 5, 9])
def test_thin_keeps_both_ends_and_the_limit_and_spreads(limit: int) -> None:
    position = [float(x) for x in np.random.default_rng(0).permutation(np.r_[0:100:11, 40:60])]
    kept = thin(range(len(position)), position, limit)
    where = [position[i] for i in kept]
    assert len(kept) == limit and where == sorted(where)
    assert (where[0], where[-1]) == (min(position), max(position))
    if limit > 2:
        assert max(np.diff(where)) < 2 * (max(position) - min(position)) / (limit - 1)


def test_thin_of_few_is_all_of_them_in_order() -> None:
    assert thin([2, 0, 1], [5.0, 9.0, 1.0], 3) == [2, 0, 1]
    assert thin([0, 1, 2], [5.0, 9.0, 1.0], 1) == [2]
    assert thin([], [], 4) == []


def test_finalists_come_from_the_largest_fidelity_only() -> None:
    found = candidates(12)
    rows = [row(c, 0.001, stop=2) for c in found[:6]] + [row(c, 1.0 + i) for i, c in enumerate(found[6:])]
    assert set(finalists(pd.DataFrame(rows), OBJECTIVES, 20)) == set(found[6:])


def test_finalists_are_the_non_dominated_and_then_the_best() -> None:
    found = candidates(60)
    scores = random_scores(found)
    frame = pd.DataFrame([row(c, scores[SPACE.decode(c).key]["kl"]) for c in found])
    points = {c: (scores[SPACE.decode(c).key]["kl"], SPACE.cost(c)["params"]) for c in found}
    front = {c for c, p in points.items() if not any(dominates(q, p) for q in points.values())}
    picked = finalists(frame, OBJECTIVES, 100)
    assert front <= set(picked) and len(picked) == max(EXTRA, len(front))
    rest = sorted(set(found) - front, key=lambda c: points[c][0])
    assert set(picked) - front == set(rest[: len(picked) - len(front)])
    assert len(finalists(frame, OBJECTIVES, 5)) == 5


def test_results_are_compared_on_the_same_windows_only_and_the_latest_come_first() -> None:
    """A candidate that met easy windows long ago must not push out the winner of the last ones."""
    lucky, won, second, older = candidates(4)
    rows = [row(lucky, 0.001, start=0, stop=8), row(older, 0.9, start=8, stop=16)]
    rows += [row(won, 0.5, start=16, stop=24), row(second, 0.7, start=16, stop=24)]
    everyone = finalists(pd.DataFrame(rows), (KL,), 9)
    assert everyone == [won, second, older, lucky]
    assert finalists(pd.DataFrame(rows), (KL,), 1) == [won]


def test_failures_repeats_and_nothing_at_all() -> None:
    a, b = candidates(2)
    rows = [row(a, 0.0, status="failed"), row(b, 0.5), row(b, 0.5)]
    assert finalists(pd.DataFrame(rows), OBJECTIVES, 9) == [b]
    assert finalists(pd.DataFrame(rows[:1]), OBJECTIVES, 9) == []
    assert finalists(pd.DataFrame(), OBJECTIVES, 9) == []


def test_a_front_is_non_dominated_on_selection_quality_and_cost() -> None:
    found = [finalist(SPACE, c) for c in candidates(60)]
    scores = random_scores(candidates(60)[:50])
    front = front_of(found, scores, OBJECTIVES, 100)
    points = {f.name: (scores[f.name]["kl"], f.costs["params"]) for f in found[:50]}
    best = {n for n, p in points.items() if not any(dominates(q, p) for q in points.values())}
    assert {f.name for f in front} == best
    sizes = [f.costs["params"] for f in front]
    assert sizes == sorted(sizes)
    thinned = [f.name for f in front_of(found, scores, OBJECTIVES, 3)]
    assert len(thinned) == 3 and set(thinned) <= best and {front[0].name, front[-1].name} <= set(thinned)


def test_the_objectives_say_which_quality_and_which_cost() -> None:
    found = [finalist(SPACE, c) for c in candidates(40)]
    scores = random_scores(candidates(40))
    front = front_of(found, scores, (Objective("nll"), Objective("decode")), 100)
    points = {f.name: (scores[f.name]["nll"], f.costs["decode"]) for f in found}
    best = {n for n, p in points.items() if not any(dominates(q, p) for q in points.values())}
    assert {f.name for f in front} == best
    assert quality_metric((PARAMS, Objective("nll"))) == "nll" and quality_metric((PARAMS,)) == "kl"
    assert front_of(found, scores, (KL,), 100) == front_of(found, scores, OBJECTIVES, 100)


def test_the_best_uniform_is_chosen_on_selection() -> None:
    a, b, c = (finalist(SPACE, x) for x in candidates(3))
    scores = {a.name: {"kl": 0.5}, c.name: {"kl": 0.25}}
    assert best_of([a, b, c], scores, "kl") == c
    assert best_of([b], scores, "kl") is None


def test_every_ratio_that_has_one_gets_its_uniform_candidates() -> None:
    found = baseline_entries(SPACE, ["uniform"], [0.5, 0.9])
    assert sorted(found) == ["uniform@0.5", "uniform@0.9"] and all(found.values())


def test_allocators_stand_beside_uniform_where_they_have_a_plan() -> None:
    asked: list[tuple[str, str]] = []

    def named(name: str, setting: str) -> Allocation:
        asked.append((name, setting))
        return lambda gene, level: max(level, 0.3)

    found = baseline_entries(SPACE, ["uniform", "owl"], [0.5, 0.01], named)
    assert list(found) == ["uniform@0.5", "uniform@0.01", "owl@0.5"], "nothing of it is that small"
    assert found["owl@0.5"][0].costs["params"] <= 0.5 * SPACE.cost(SPACE.dense)["params"]
    assert set(asked) == {("owl", "baselines")}


def test_an_entry_that_failed_is_infinitely_bad() -> None:
    entry = Entry("front", finalist(SPACE, SPACE.dense), {"test": {"kl": 0.25}})
    assert entry.quality(Split.TEST) == 0.25 and entry.quality(Split.SELECTION) == float("inf")


class FakeEvaluation:
    """Scores by the number of sublayers that are there; nothing left fails."""

    def __init__(self, worse: float = 0.0) -> None:
        self.seen: list[str] = []
        self._worse = worse

    def evaluate(self, plans: Sequence[Plan], fidelity: Fidelity) -> list[Scores | Failure]:
        self.seen += [p.key for p in plans]
        left = [sum(not s.gone for s in p.sublayers) for p in plans]
        return [
            Scores({"kl": 1 / n + self._worse}, {"kl": np.full(fidelity.count, 1 / n)})
            if n
            else Failure("empty")
            for n in left
        ]


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    found = Ledger.create(tmp_path / "ledger.sqlite", {})
    yield found
    found.close()


def test_plans_are_scored_once_and_remembered(ledger: Ledger) -> None:
    found, evaluation, steps = [finalist(SPACE, c) for c in candidates(20)], FakeEvaluation(), []
    scorer = Scorer(lambda ladders: evaluation, ledger)  # type: ignore[arg-type, return-value]
    first = scorer.score(
        [*found[:12], *found[:3]], SELECTION, lambda done, total: steps.append((done, total))
    )
    assert len(evaluation.seen) == 12 == len(first) and steps == [(8, 12), (12, 12)]
    second = scorer.score(found, SELECTION, lambda done, total: None)
    assert len(evaluation.seen) == 20 and first.items() <= second.items()
    assert scorer.score(found[:1], Fidelity(Split.TEST, (0, 3)), lambda done, total: None)
    assert len(evaluation.seen) == 21, "other windows are scored anew"


def test_a_plan_on_other_ladders_is_another_model(ledger: Ledger) -> None:
    """Plan keys of different supernets must not be confused."""
    (candidate,), asked = candidates(1), []

    def of(ladders: str) -> FakeEvaluation:
        asked.append(ladders)
        return FakeEvaluation(0.5 if ladders else 0.0)

    own, other = finalist(SPACE, candidate), finalist(SPACE, candidate, "abc")
    scorer = Scorer(of, ledger)  # type: ignore[arg-type]
    found = scorer.score([own, other], SELECTION, lambda done, total: None)
    assert asked == ["", "abc"] and found[other.name]["kl"] == found[own.name]["kl"] + 0.5
    again = Scorer(of, ledger).score([other, own], SELECTION, lambda done, total: None)  # type: ignore[arg-type]
    assert again == found and asked == ["", "abc"]
    assert best_of([other, own], found, "kl") is own


def test_a_plan_that_fails_is_absent_and_noted(ledger: Ledger) -> None:
    empty, dense = finalist(SPACE, Candidate((0,) * 8)), finalist(SPACE, SPACE.dense)
    scorer = Scorer(lambda ladders: FakeEvaluation(), ledger)  # type: ignore[arg-type, return-value]
    found = scorer.score([empty, dense], SELECTION, lambda done, total: None)
    assert list(found) == [dense.name]
    assert ledger.events("failed_final") == [{"key": empty.plan.key, "reason": "empty"}]
