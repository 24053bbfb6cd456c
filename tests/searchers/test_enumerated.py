"""The enumerated model case: complete, priced like a model, and its front is the true one."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.objective import Fidelity, Proposal, Split, dominates
from autoprune.searchers.enumerated import Enumerated
from autoprune.sublayers import SublayerSpace


@pytest.fixture(scope="module")
def case() -> Enumerated:
    return Enumerated.load()


@pytest.fixture(scope="module")
def space(case: Enumerated) -> SublayerSpace:
    return SublayerSpace(case.genes, case.full, (case.costs,))


def test_every_plan_is_there(case: Enumerated, space: SublayerSpace) -> None:
    assert case.kl.shape == (3**8, 16) and len(case.genes) == 8
    assert np.isfinite(case.kl).all() and case.windows == 16
    assert case.candidate(len(case.kl) - 1) == space.dense
    assert case.truth[-1] < 1e-4 and case.truth.argmin() == len(case.kl) - 1
    assert case.truth[0] > 0.3
    for row in (0, 1, 5000):
        assert case.row(case.candidate(row)) == row
    assert case.row(space.dense.with_value(7, 1)) == len(case.kl) - 2, "the last gene is the fastest"


def test_keeping_more_of_one_site_helps_mostly(case: Enumerated, space: SublayerSpace) -> None:
    """Says that the columns are in the right order: a swapped pair of genes would still be finite."""
    base = np.array(space.dense.indices())
    for gene in range(8):
        falls = [case.truth[case.row(space.dense.with_value(gene, o))] for o in range(3)]
        assert falls[0] > falls[1] > falls[2], (gene, falls)
    assert base.tolist() == [2] * 8


def test_proposals_are_answered_from_the_windows_asked_for(case: Enumerated, space: SublayerSpace) -> None:
    candidate = case.candidate(1234)
    result = case.evaluator(space)(Proposal(0, candidate, Fidelity(Split.FITNESS, (2, 5))))
    assert result.metrics["kl"] == pytest.approx(case.kl[1234, 2:5].mean())
    assert result.per_window["kl"].tolist() == case.kl[1234, 2:5].tolist()
    assert result.metrics["params"] == space.cost(candidate)["params"]


def test_the_front_is_the_true_one(case: Enumerated, space: SublayerSpace) -> None:
    front = case.front(space)
    points = [(space.cost(c)["params"], float(case.truth[case.row(c)])) for c in front]
    assert points == sorted(points) and front[-1] == space.dense
    every = [
        (space.cost(case.candidate(r))["params"], float(case.truth[r])) for r in range(0, len(case.kl), 7)
    ]
    for point in every:
        assert not any(dominates(point, other) for other in points)
