"""Which row of the leaderboard an export means."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from autoprune.errors import SettingError
from autoprune.run.export import choose

FRAME = pd.DataFrame(
    [
        ("dense", "aa11", 1.0, 1.0, 0.0),
        ("uniform@0.5", "ab22", 0.5, 0.55, 0.1),
        ("front", "ba33", 0.4, 0.5, 0.9),
        ("front", "bb44", 0.6, 0.7, 0.3),
        ("front", "bb55", 0.8, np.nan, 0.2),
        ("front", "ab22", 0.5, 0.55, 0.6),
    ],
    columns=["name", "key", "params_ratio", "decode_ratio", "kl_selection"],
)
FRAME["prefill_ratio"] = np.nan
NONE: dict[str, object] = {"params": None, "prefill": None, "decode": None}


def bounds(**given: object) -> dict[str, object]:
    return {**NONE, **given}


@pytest.mark.parametrize(
    ("key", "found"),
    [("bb44", "bb44"), ("ba", "ba33"), ("aa11", "aa11"), ("ab", "ab22"), ("uniform@0.5", "ab22")],
)
def test_a_key_may_be_shortened_and_may_stand_twice(key: str, found: str) -> None:
    assert choose(FRAME, key, NONE)["key"] == found


def test_a_key_of_several_plans_is_refused_with_their_names() -> None:
    with pytest.raises(SettingError, match="--key b fits several plans: ba33, bb44, bb55"):
        choose(FRAME, "b", NONE)


def test_an_unknown_key_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingError, match="--key zz is not on the leaderboard; keys: aa11, ab22"):
        choose(FRAME, "zz", NONE)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ({"params": "0.6x"}, "bb44"),
        ({"params": 0.7}, "bb44"),
        ({"params": "0.59"}, "ab22"),
        ({"params": "1x"}, "bb55"),
        ({"params": "0.4x"}, "ba33"),
        ({"decode": "0.9x"}, "bb44"),
        ({"decode": "0.5x"}, "ba33"),
    ],
)
def test_the_best_of_the_front_within_a_bound(given: dict[str, object], found: str) -> None:
    row = choose(FRAME, None, bounds(**given))
    assert (row["key"], row["name"]) == (found, "front")


def test_a_bound_below_the_front_names_the_smallest() -> None:
    with pytest.raises(SettingError, match="--params 0.3x: the smallest on the front is 0.400x"):
        choose(FRAME, None, bounds(params="0.3x"))


def test_what_was_not_measured_is_said() -> None:
    with pytest.raises(SettingError, match="--prefill: this run has no measured prefill_ratio"):
        choose(FRAME, None, bounds(prefill="0.5x"))


@pytest.mark.parametrize("text", ["half", "60%", ""])
def test_what_is_no_ratio_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="--params .*write 0.6x"):
        choose(FRAME, None, bounds(params=text))


def test_a_plan_on_several_ladders_is_exported_from_the_better_ones() -> None:
    twice = pd.DataFrame(
        [("uniform@0.5", "cc66", 0.5, 0.5, 0.4, None), ("front", "cc66", 0.5, 0.5, 0.3, "0123")]
    )
    twice.columns = pd.Index([*FRAME.columns[:5], "ladders"])
    assert choose(twice, "cc66", NONE)["ladders"] == "0123"
    assert choose(twice.assign(kl_selection=[0.2, 0.3]), "cc66", NONE)["name"] == "uniform@0.5"
