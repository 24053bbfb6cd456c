"""What `autoprune bench tabular` and `bench searchers` measure."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.bench.searchers import measure
from autoprune.bench.tabular import EnumeratedRace, gap
from autoprune.searchers.enumerated import Enumerated


@pytest.fixture(scope="module")
def race() -> EnumeratedRace:
    return EnumeratedRace(Enumerated.load())


def test_dp_closes_the_gap_of_an_additive_problem_only() -> None:
    gaps = {kind: gap("dp", kind, 0, 2000)[0] for kind in ("additive", "deceptive")}
    assert gaps["additive"] == pytest.approx(0.0, abs=1e-9) and gaps["deceptive"] > 0.2


def test_what_is_spent_is_counted_in_windows() -> None:
    _, spent = gap("random", "additive", 0, 500)
    assert spent == 512  # two batches of 32 candidates on 8 windows


def test_the_true_front_has_all_of_its_volume_and_any_part_less(race: EnumeratedRace) -> None:
    front = race.case.front(race.space)
    assert race.volume(front) == race.whole > 0
    assert race.volume(front[::2]) < race.whole
    assert race.volume([race.space.dense]) == 0.0


def test_a_method_is_raced_until_its_front_is_nearly_the_true_one(race: EnumeratedRace) -> None:
    needed, share, spent = race.run("dp", 0, 500)
    assert 17 * 4 / 16 < needed <= spent < 60 and 0.8 < share <= 1.0
    needed, share, spent = race.run("random", 0, 40)
    assert np.isinf(needed) and share < 0.95 and 40 <= spent <= 72


@pytest.mark.parametrize("name", ["random", "nsga2"])
def test_asking_and_telling_is_timed_in_a_large_space(name: str) -> None:
    count, seconds = measure(name, 1)
    assert count > 0 and 0 < seconds < 1
