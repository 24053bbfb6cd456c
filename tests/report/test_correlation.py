"""Rank correlations against a count by hand and against scipy, and their intervals."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autoprune.report.correlation import Tau, kendall, ranking


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


def test_the_figure_in_words() -> None:
    tau = Tau(0.5, 0.301, 0.8, 9)
    assert tau.text == "Kendall tau 0.50, 95 % interval 0.30 to 0.80 (9 plans)"
    assert tau.cell == "+0.50 [+0.30, +0.80]"


def test_rankings_are_scipys() -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 40).astype(float)
    b = a + rng.normal(0, 3, 40).round()
    found = ranking(a.tolist(), b.tolist())
    assert found is not None and found.plans == 40
    assert found.value == pytest.approx(stats.kendalltau(a, b).statistic)
    assert found.rho == pytest.approx(stats.spearmanr(a, b).statistic)
    assert found.low < found.value < found.high
    assert ranking([1.0] * 40, b.tolist()) is None and ranking([1.0, 2.0], [1.0, 2.0]) is None
    turned = ranking((-a).tolist(), b.tolist())
    assert turned is not None and turned.value == pytest.approx(-found.value)
