"""Single-gene variations and the additive table made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest

from autoprune.objective import Fidelity, Proposal, Result, Split, Status
from autoprune.searchers.sensitivity import additive, changes, effects, variations
from autoprune.space import Candidate
from tests.tabular import KL

SIZES = (3, 1, 4)
BASE = Candidate((2, 0, 1))


def test_each_option_alone() -> None:
    found = variations(BASE, SIZES)
    assert [(v.gene, v.option) for v in found] == [(0, 0), (0, 1), (2, 0), (2, 2), (2, 3)]
    for v in found:
        assert [i for i in range(3) if v.candidate.values[i] != BASE.values[i]] == [v.gene]
        assert v.candidate.values[v.gene] == v.option


def test_only_the_options_of_interest() -> None:
    found = variations(BASE, SIZES, [[0, 2], [0], [1, 3, 3]])
    assert [(v.gene, v.option) for v in found] == [(0, 0), (2, 3)]


def result(candidate: Candidate, kl: float, windows: tuple[int, int] = (0, 4)) -> Result:
    proposal = Proposal(0, candidate, Fidelity(Split.FITNESS, windows))
    if math.isnan(kl):
        return Result(proposal, Status.FAILED, reason="asked to")
    return Result(proposal, Status.OK, {"kl": kl})


def test_changes_are_against_the_base_on_the_same_windows() -> None:
    varied = variations(BASE, SIZES)[:3]
    values = (0.5, 0.2, math.nan)
    told = [result(v.candidate, kl) for v, kl in zip(varied, values, strict=True)]
    found = changes(result(BASE, 0.3), varied, told, KL)
    assert found == {(0, 0): pytest.approx(0.2), (0, 1): pytest.approx(-0.1), (2, 0): math.inf}
    with pytest.raises(ValueError, match="same windows"):
        changes(result(BASE, 0.3, (0, 2)), varied, told, KL)
    with pytest.raises(ValueError, match="usable"):
        changes(result(BASE, math.nan), varied, told, KL)


def test_missing_options_lie_between_their_neighbours_and_nothing_is_extrapolated() -> None:
    base, sizes = Candidate((4, 5)), (7, 6)
    measured = {(0, 1): 0.9, (1, 0): 8.0, (1, 1): math.inf, (1, 4): 0.5}
    first, second = effects(base, sizes, measured)
    assert first.tolist() == [math.inf, 0.9, pytest.approx(0.6), pytest.approx(0.3), 0.0, math.inf, math.inf]
    assert second.tolist() == [8.0, math.inf, math.inf, math.inf, 0.5, 0.0]


def test_the_table_of_an_additive_loss_is_the_loss() -> None:
    rng = np.random.default_rng(0)
    own = [rng.normal(size=n) for n in SIZES]

    def loss(candidate: Candidate) -> float:
        return float(sum(row[o] for row, o in zip(own, candidate.indices(), strict=True)))

    varied = variations(BASE, SIZES)
    told = [result(v.candidate, loss(v.candidate)) for v in varied]
    table = effects(BASE, SIZES, changes(result(BASE, loss(BASE)), varied, told, KL))
    other = Candidate((0, 0, 3))
    assert additive(table, other) == pytest.approx(loss(other) - loss(BASE))
