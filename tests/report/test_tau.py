"""Kendall's tau against a count by hand, and its interval."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.report.tau import LOW, Tau, kendall


def by_hand(a: list[float], b: list[float]) -> float:
    """Concordant less discordant pairs over all, without ties."""
    pairs = [(i, j) for i in range(len(a)) for j in range(i)]
    return sum(1 if (a[i] < a[j]) == (b[i] < b[j]) else -1 for i, j in pairs) / len(pairs)


def test_by_hand() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=12).tolist(), rng.normal(size=12).tolist()
    found = kendall(a, b)
    assert found.value == pytest.approx(by_hand(a, b)) and found.plans == 12
    assert found.low < found.value < found.high and found == kendall(a, b)


def test_order_decides_and_size_does_not() -> None:
    a = [0.1, 0.2, 0.4, 0.5, 0.9]
    same = kendall(a, [x**3 for x in a])
    assert (same.value, same.low, same.high) == pytest.approx((1.0, 1.0, 1.0))
    assert kendall(a, [-x for x in a]).value == pytest.approx(-1.0)
    assert kendall(a, [1.0] * 5) == Tau(0.0, -1.0, 1.0, 5)


def test_more_plans_narrow_the_interval() -> None:
    rng = np.random.default_rng(1)
    a = rng.normal(size=60)
    b = a + rng.normal(size=60)
    few, many = kendall(a[:8].tolist(), b[:8].tolist()), kendall(a.tolist(), b.tolist())
    assert many.high - many.low < 0.6 * (few.high - few.low)


def test_a_low_tau_is_warned_of() -> None:
    assert "little about plans after recovery" in str(Tau(LOW - 0.01, 0.0, 0.5, 9).warning)
    assert "more plans would tell" in str(Tau(0.5, LOW - 0.01, 0.8, 9).warning)
    assert Tau(0.5, LOW, 0.8, 9).warning is None
    assert Tau(0.5, 0.301, 0.8, 9).text == "Kendall tau 0.50, 95 % interval 0.30 to 0.80 (9 plans)"
