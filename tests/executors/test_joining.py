"""Parts of windows, however they were cut and whoever died on the way, come to what a whole evaluation says."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.evaluation import Failure, Scores, summarise
from autoprune.executors.joining import Joining
from autoprune.executors.wire import Scored
from autoprune.objective import Fidelity, Result, Split
from tests.made_up_ray import jobs

WIDTHS = [8, 16, 24]


@pytest.fixture
def values() -> dict[str, np.ndarray]:
    """Of each plan on five windows."""
    draw = np.random.default_rng(0)
    classes = {name: draw.integers(0, 3, (3, 5)).astype(float) for name in ("label", "predicted")}
    shares = {name: draw.random((3, 5)) for name in ("nll", "bits", "bytes", "confidence")}
    return {**classes, **shares}


def piece(
    values: dict[str, np.ndarray], plans: list[int], windows: tuple[int, int], note: str = ""
) -> Scored:
    """What comes back over the wire."""
    found = []
    for plan in plans:
        scores = summarise({m: [v[plan, slice(*windows)]] for m, v in values.items()})
        found.append(Scores(scores.metrics, scores.per_window, note))
    return Scored.unpacked(Scored(found, 1, 2, 0.1).packed())


def added(joining: Joining, plans: list[int], windows: tuple[int, int], scored: Scored) -> list[Result]:
    batch = jobs(WIDTHS)
    return joining.add([batch[plan] for plan in plans], Fidelity(Split.FITNESS, windows), scored)


@pytest.mark.parametrize("second", [[[0, 1, 2]], [[2, 1], [0]]], ids=["whole", "plan by plan"])
@pytest.mark.parametrize("note", ["", "a smaller micro-batch"])
def test_every_way_gives_the_same_bits(
    values: dict[str, np.ndarray], second: list[list[int]], note: str
) -> None:
    joining = Joining()
    for job in [*jobs(WIDTHS), *jobs(WIDTHS)]:
        joining.expect(job)
    found = added(joining, [0, 1, 2], (3, 5), piece(values, [0, 1, 2], (3, 5), note))
    assert found == []
    for plans in second:
        found += added(joining, plans, (0, 3), piece(values, plans, (0, 3)))
    assert [r.proposal.id for r in found] == [plan for plans in second for plan in plans]
    for result in found:
        whole = summarise({m: [v[result.proposal.id]] for m, v in values.items()})
        assert dict(result.metrics) == dict(whole.metrics) and "macro_f1" in whole.metrics
        assert {m: v.tobytes() for m, v in result.per_window.items()} == {
            m: v.tobytes() for m, v in whole.per_window.items()
        }
        assert result.reason == note


def test_a_part_that_fails_fails_its_plan_alone(values: dict[str, np.ndarray]) -> None:
    joining = Joining()
    for job in [*jobs(WIDTHS), *jobs(WIDTHS)]:
        joining.expect(job)
    good = piece(values, [0, 1, 2], (0, 3)).outcomes
    bad = Scored([good[0], Failure("NaN"), good[2]], 1, 2, 0.1)
    assert added(joining, [0, 1, 2], (0, 3), Scored.unpacked(bad.packed())) == []
    found = added(joining, [0, 1, 2], (3, 5), piece(values, [0, 1, 2], (3, 5)))
    assert [(r.ok, r.reason) for r in found] == [(True, ""), (False, "NaN"), (True, "")]
