"""Dominance, bounds and what evaluations are made of."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import SettingError, nearest
from autoprune.objective import (
    Constraint,
    Fidelity,
    Objective,
    Proposal,
    Split,
    dominates,
    jsonable,
    non_dominated,
    parse_constraint,
)
from autoprune.space import Candidate

DENSE = {"params": 1000.0, "decode": 4.0}


def brute_force(points: list[tuple[float, ...]]) -> list[tuple[float, ...]]:
    """The distinct points that no other dominates, sorted."""
    return sorted({p for p in points if not any(dominates(q, p) for q in points)})


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("seed", range(20))
def test_non_dominated_equals_brute_force(objectives: int, seed: int) -> None:
    """Few distinct coordinates, so that ties and equal points abound."""
    rng = np.random.default_rng(seed)
    points = [tuple(float(x) for x in row) for row in rng.integers(0, 6, (40, objectives))]
    kept = non_dominated(points)
    assert [points[i] for i in kept] == brute_force(points)
    assert kept == [points.index(points[i]) for i in kept], "of equal points the first is kept"


def test_non_dominated_of_nothing_of_one_and_of_infinite_losses() -> None:
    assert non_dominated([]) == []
    assert non_dominated([(3.0, 1.0)]) == [0]
    assert non_dominated([(2.0, float("inf")), (1.0, float("inf"))]) == [1]
    assert non_dominated([(1.0, float("inf")), (2.0, 5.0)]) == [0, 1]


def test_dominance_needs_one_strict_gain() -> None:
    assert dominates((1, 2), (1, 3)) and dominates((0, 0), (1, 1))
    assert not dominates((1, 2), (1, 2))
    assert not dominates((0, 3), (1, 2))


def test_maximised_metrics_are_turned_round() -> None:
    assert Objective("accuracy", maximise=True).value({"accuracy": 0.75}) == -0.75
    assert Objective("kl").value({"kl": 0.25}) == 0.25


@pytest.mark.parametrize(
    ("text", "bound"), [("0.6x", 600.0), (" 1x ", 1000.0), ("0x", 0.0), ("250", 250.0), (250, 250.0)]
)
def test_bounds_are_relative_or_absolute(text: object, bound: float) -> None:
    found = parse_constraint("params", text, DENSE)
    assert (found.metric, found.bound, found.text) == ("params", bound, str(text).strip())


@pytest.mark.parametrize("text", ["", "x", "60%", "-1", "-0.5x", "nan", "infx", "0.6y", None])
def test_what_is_no_bound_is_refused(text: object) -> None:
    with pytest.raises(SettingError, match="constraints.params=.*write 0.6x"):
        parse_constraint("params", text, DENSE)


def test_an_unknown_cost_is_refused_with_the_nearest() -> None:
    with pytest.raises(SettingError, match="constraints.decod .*did you mean 'decode'"):
        parse_constraint("decod", "0.6x", DENSE)
    with pytest.raises(SettingError, match="allowed: decode, params"):
        parse_constraint("weight", "0.6x", DENSE)


def test_a_violation_is_how_far_above_and_forgives_summation_order() -> None:
    limit = Constraint("params", 1e6)
    assert limit.violation({"params": 1e6}) == 0.0 == limit.violation({"params": 1e6 * (1 + 1e-12)})
    assert limit.violation({"params": 1e6 + 5}) == 5.0
    assert Constraint("params", 0.0).violation({"params": 0.5}) == 0.5


@pytest.mark.parametrize("windows", [(2, 2), (3, 2), (-1, 2)])
def test_a_fidelity_has_windows(windows: tuple[int, int]) -> None:
    with pytest.raises(SettingError, match=f"windows={windows[0]}..{windows[1]}"):
        Fidelity(Split.FITNESS, windows)


def test_a_fidelity_counts_its_windows() -> None:
    assert Fidelity(Split.TEST, (3, 8)).count == 5


def test_numpy_values_become_plain() -> None:
    found = jsonable({"a": np.float64(0.5), 1: (np.int64(2), [np.bool_(True)])})
    assert found == {"a": 0.5, "1": [2, [True]]}
    assert type(found["a"]) is float and type(found["1"][0]) is int


@pytest.mark.parametrize("split", [s for s in Split if s is not Split.FITNESS])
def test_a_search_cannot_ask_for_other_windows_than_fitness(split: Split) -> None:
    with pytest.raises(
        SettingError, match=f"asks for windows of split {split.value}; a search sees split fitness"
    ):
        Proposal(3, Candidate((0,)), Fidelity(split, (0, 1)))


def test_very_many_names_are_not_all_listed() -> None:
    tail = nearest("zzz", [f"name{i:04}" for i in range(14_000)])
    assert tail.endswith("name0059 and 13940 more") and len(tail) < 1000
