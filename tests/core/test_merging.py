"""Array genes behind option genes: what they decode to, and that they cost nothing."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from autoprune.errors import SettingError, SpaceError
from autoprune.merging import MergedSpace, identity
from autoprune.objective import parse_constraint
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, Plan
from autoprune.sublayers import join
from autoprune.uniform import uniform_candidates
from search_spaces.experts import Experts
from search_spaces.merging import Merging
from tests.tabular import SHAPE

MOE = dataclasses.replace(SHAPE, model_type="mixtral", experts=6, experts_per_token=2)
SIZE = (2, 6, 6)


@pytest.fixture
def space() -> MergedSpace:
    found = join([Experts(per_token=[2]), Merging()], MOE, [AnalyticCosts(MOE)])
    assert isinstance(found, MergedSpace)
    return found


def kept(space: MergedSpace, counts: list[int]) -> Candidate:
    options = [g.options.index(c) for g, c in zip(space.genes[:4], counts, strict=True)]  # type: ignore[union-attr]
    return Candidate((*options, *space.dense.values[4:]))


def with_array(candidate: Candidate, block: int, array: np.ndarray) -> Candidate:
    values = list(candidate.values)
    values[4 + block] = tuple(array.ravel().tolist())
    return Candidate(tuple(values))


def test_options_come_first_and_the_dense_candidate_merges_nothing(space: MergedSpace) -> None:
    assert [g.setting for g in space.genes] == ["experts"] * 4 + ["merge"] * 4
    plan = space.decode(space.dense)
    assert plan == space.of.decode(space.of.dense) and "merge" not in plan.to_json()
    assert space.decode(kept(space, [3, 6, 0, 2])) == space.of.decode(Candidate((2, 5, 0, 1)))


def test_rows_of_kept_experts_are_in_the_plan(space: MergedSpace) -> None:
    array = np.array(identity(space.arrays[1])).reshape(SIZE)
    array[0, 1, 4], array[1, 5, 0] = 0.5, 1.5
    candidate = with_array(kept(space, [3, 3, 0, 2]), 1, array)
    found = json.loads(str(space.decode(candidate).at(1, "ffn").get("merge")))
    assert np.array_equal(found, array[:, :3]), "the row of an expert that is not kept does not count"
    assert Plan.from_json(space.decode(candidate).to_json()) == space.decode(candidate)
    assert Candidate.from_json(candidate.to_json()) == candidate
    gone = with_array(kept(space, [3, 0, 0, 2]), 1, array)
    assert space.decode(gone) == space.decode(kept(space, [3, 0, 0, 2]))
    assert space.cost(candidate) == space.cost(kept(space, [3, 3, 0, 2]))


def test_repair_and_uniform_plans_are_those_of_the_options(space: MergedSpace) -> None:
    bound = parse_constraint("expert_bytes", "0.5x", space.cost(space.dense))
    repaired = space.repair(space.dense, [bound], np.random.default_rng(0))
    assert not bound.violation(space.cost(repaired)) and repaired.values[4:] == space.dense.values[4:]
    (first, *_) = uniform_candidates(space, 0.5, "expert_bytes")
    counts = [space.decode(first).at(b, "ffn").get("experts") for b in range(4)]
    assert counts == [3] * 4 and first.values[4:] == space.dense.values[4:]
    assert space.cost_table("params") is None and space.digest() != space.of.digest()


@pytest.mark.parametrize("value", [(1.0,) * 71, (3.0,) * 72])
def test_arrays_of_another_size_or_out_of_bounds_are_refused(
    space: MergedSpace, value: tuple[float, ...]
) -> None:
    with pytest.raises(SpaceError, match=r"block0.ffn.merge: \(2, 6, 6\) values between -2.0 and 2.0"):
        space.decode(Candidate((*space.dense.values[:4], value, *space.dense.values[5:])))
    with pytest.raises(SpaceError, match="the candidate has 7 values, the space 8 genes"):
        space.cost(Candidate(space.dense.values[:-1]))


def test_mistakes_are_refused() -> None:
    with pytest.raises(SettingError, match="space=merging needs a model with experts"):
        Merging().genes(SHAPE)
    with pytest.raises(SettingError, match="space.merging.bound=0.5 must be at least 1"):
        Merging(0.5)
