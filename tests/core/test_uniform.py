"""The uniform baseline: one option a kind everywhere, then filled from block 0 up."""

from __future__ import annotations

import dataclasses

import pytest

from autoprune.objective import Constraint
from autoprune.space import Candidate, Space
from autoprune.uniform import SPLITS, uniform_candidates
from tests.tabular import SHAPE, structured_space

SHAPES = [SHAPE, dataclasses.replace(SHAPE, blocks=7, norm_params=32, ffn=100, kv_groups=8)]


@pytest.fixture(params=SHAPES, ids=["small", "uneven"])
def space(request: pytest.FixtureRequest) -> Space:
    return structured_space(request.param)


def fits(space: Space, candidate: Candidate, limit: Constraint) -> bool:
    return space.cost(candidate)[limit.metric] <= limit.bound * (1 + 1e-9)


def filled(space: Space, start: Candidate, limit: Constraint) -> Candidate:
    """One option more for every site that it fits at, block 0 first."""
    for gene, (value, last) in enumerate(zip(start.indices(), space.dense.indices(), strict=True)):
        raised = start.with_value(gene, min(value + 1, last))
        start = raised if fits(space, raised, limit) else start
    return start


def starts(space: Space, candidate: Candidate) -> list[tuple[int, int]]:
    """The levels (KV groups, width) from which a fill could have come."""
    groups, widths = (min(candidate.indices()[kind::2]) for kind in (0, 1))
    return [(g, w) for g in (groups, groups - 1) for w in (widths, widths - 1) if min(g, w) >= 0]


@pytest.mark.parametrize("metric", ["params", "decode"])
@pytest.mark.parametrize("ratio", [0.33, 0.4, 0.5, 0.6, 0.77, 0.9, 1.0])
def test_one_level_a_kind_filled_from_block_0_up(space: Space, ratio: float, metric: str) -> None:
    limit = Constraint(metric, ratio * space.cost(space.dense)[metric])
    found = uniform_candidates(space, ratio, metric)
    blocks, last = len(space.genes) // 2, space.dense.indices()
    assert 1 <= len(found) <= SPLITS
    for candidate in found:
        assert fits(space, candidate, limit)
        levels = [
            (g, w)
            for g, w in starts(space, candidate)
            if filled(space, Candidate((g, w) * blocks), limit) == candidate
        ]
        assert levels, f"{candidate} is no filled uniform candidate"
        assert any(
            w == last[1] or not fits(space, Candidate((g, w + 1) * blocks), limit) for g, w in levels
        ), "wider everywhere would fit"


def test_closest_to_equal_fractions_comes_first(space: Space) -> None:
    groups, width = space.dense.indices()[:2]
    base = [
        (min(c.indices()[0::2]) / groups, min(c.indices()[1::2]) / width)
        for c in uniform_candidates(space, 0.5)
    ]
    gaps = [abs(a - b) for a, b in base]
    assert gaps[0] <= 0.3
    assert len(base) == SPLITS and len(set(base)) == SPLITS


def test_everything_fits_at_1(space: Space) -> None:
    assert uniform_candidates(space, 1.0)[0] == space.dense


def test_nothing_fits_below_what_cannot_be_removed(space: Space) -> None:
    assert uniform_candidates(space, 0.01, "decode") == []
    assert uniform_candidates(space, 0.0)[0] == Candidate((0,) * len(space.genes))
