"""Hypervolume against areas worked out by hand."""

from __future__ import annotations

import math

import pytest

from autoprune.errors import SettingError
from autoprune.report.hypervolume import hypervolume


def test_area_of_two_steps() -> None:
    assert hypervolume([(0.5, 0.5), (0.25, 0.75)], (1.0, 1.0)) == pytest.approx(0.25 + 0.25 * 0.25)


def test_points_outside_the_reference_add_nothing() -> None:
    inside = hypervolume([(0.5, 0.5)], (1.0, 1.0))
    assert hypervolume([(0.5, 0.5), (2.0, 0.0), (0.1, 1.0)], (1.0, 1.0)) == inside


def test_no_points_no_volume() -> None:
    assert hypervolume([], (1.0, 1.0)) == 0.0


@pytest.mark.parametrize("points", [[(math.nan, 0.5)], [(0.1, 0.1, 0.1)]])
def test_what_is_no_point_is_refused(points: list[tuple[float, ...]]) -> None:
    with pytest.raises(SettingError, match="hypervolume"):
        hypervolume(points, (1.0, 1.0))
