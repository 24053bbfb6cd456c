"""The bootstrap on known cases, a hypervolume by hand."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.bench.search.scoring import Scored
from autoprune.bench.search.statistics import ratio, reached, volume, volume_ratio, volumes


def test_what_is_paired_cancels() -> None:
    theirs = np.random.default_rng(0).lognormal(0, 1, (5, 64))  # windows differ by far more than methods
    of = ratio(0.9 * theirs, theirs)
    assert (of.value, of.low, of.high, of.worst) == pytest.approx((0.9,) * 4)


def test_the_interval_is_that_of_a_mean() -> None:
    rng = np.random.default_rng(1)
    ours, theirs = 1 + 0.1 * rng.standard_normal((1, 400)), np.ones((1, 400))
    of = ratio(ours, theirs)
    half = 1.96 * ours.std() / np.sqrt(400)
    assert of.low == pytest.approx(ours.mean() - half, abs=0.1 * half)
    assert of.high == pytest.approx(ours.mean() + half, abs=0.1 * half)


def test_seeds_widen_the_interval() -> None:
    means = np.array([[0.8], [0.9], [1.0], [1.1], [1.2]])
    of = ratio(np.broadcast_to(means, (5, 64)), np.ones((1, 64)))  # no window tells them apart
    assert of.value == pytest.approx(1.0) and of.worst == pytest.approx(1.2)
    deviation = means.std() / np.sqrt(5)  # of a mean of five drawn with replacement
    assert of.high - of.low == pytest.approx(2 * 1.96 * deviation, rel=0.1)


def test_volume_by_hand() -> None:
    below = (1.0 - 0.5) * 1.0  # 0.5x at KL 0.1, against (1.0, log10 1)
    beside = (0.5 - 0.25) * -np.log10(0.5)  # what 0.25x at KL 0.5 adds
    assert volume([(0.5, 0.1)], 1.0) == pytest.approx(below)
    assert volume([(0.5, 0.1), (0.25, 0.5), (0.6, 0.3)], 1.0) == pytest.approx(below + beside)
    assert volume([(1.0, 1e-7), (0.2, 2.0)], 1.0) == 0.0


def test_volumes_are_compared_seed_by_seed() -> None:
    worst = np.full(16, 1.0)

    def front(kl: float) -> list[Scored]:
        return [Scored("k", 0.5, kl, np.full(16, kl))]

    ours, theirs = [front(0.01), front(0.1)], [front(0.1), front(0.1)]
    assert volumes(ours, worst) == pytest.approx([1.0, 0.5])
    of = volume_ratio(ours, theirs, worst)
    assert of.value == pytest.approx(1.5) and of.worst == pytest.approx(1.0)
    assert (of.low, of.high) == pytest.approx((1.0, 2.0))  # both draws of one seed happen


def test_tokens_to_a_quality() -> None:
    assert reached({100: 0.5, 200: 0.3, 400: 0.2}, 0.3) == 200
    assert reached({100: 0.5}, 0.3) is None
