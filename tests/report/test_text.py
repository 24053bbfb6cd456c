"""Numbers as readers see them."""

from __future__ import annotations

import pytest

from autoprune.report import text


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.2141, "0.214"),
        (0.000407, "0.000407"),
        (1.25, "1.25"),
        (18.34, "18.3"),
        (1234.0, "1234"),
        (100.0, "100"),
        (None, "–"),
    ],
)
def test_digits(value: float | None, said: str) -> None:
    assert text.digits(value) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.24, "4.2 s"), (59.0, "59 s"), (200.0, "3 min 20 s"), (7500.0, "2 h 05 min")]
)
def test_duration(seconds: float, said: str) -> None:
    assert text.duration(seconds) == said


def test_the_rest() -> None:
    assert text.kl(3e-7) == "0"
    assert text.kl(None) == text.ratio(None) == text.percent(None) == text.count(None) == text.MISSING
    assert text.percent(-70.2) == "−70 %"
    assert text.percent(12.0) == "+12 %"
    assert text.bounds((0.571, 0.6)) == "[0.57, 0.60]"


def test_counts_are_rounded_to_the_unit_they_are_told_in() -> None:
    assert [text.short(v) for v in (999_680, 999_400, 1500, 12)] == ["1M", "999k", "1.5k", "12"]
