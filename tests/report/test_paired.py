"""Differences on the same items: small when items agree, honest when they are few."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from autoprune.report.paired import by_task, paired, pooled


def test_the_interval_is_that_of_a_paired_test() -> None:
    rng = np.random.default_rng(0)
    dense = (rng.random(300) < 0.7).astype(float)
    plan = np.where(rng.random(300) < 0.1, 1 - dense, dense)
    found = paired(plan.tolist(), dense.tolist())
    wanted = stats.ttest_rel(plan, dense).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))
    assert found.mean == pytest.approx(plan.mean() - dense.mean()) and found.items == 300


def test_pairing_sees_what_two_accuracies_do_not() -> None:
    """Six items of 200 lost and none won: far within two standard errors of an accuracy, yet no chance."""
    dense = np.array([1.0] * 120 + [0.0] * 80)
    plan = dense.copy()
    plan[:6] = 0.0
    found = paired(plan.tolist(), dense.tolist())
    assert found.high < 0 and found.verdict.startswith("loses (-3.0 points, 95 % interval ")
    assert 2 * np.sqrt(0.6 * 0.4 / 200) > 0.03


def test_equal_answers_do_not_prove_equality() -> None:
    found = paired([1.0] * 100, [1.0] * 100)
    assert (found.low, found.high) == pytest.approx((-0.03, 0.03))
    assert found.verdict == "no measurable loss (+0.0 points, 95 % interval -3.0 to +3.0, 100 items)"


def test_tasks_and_all_their_items() -> None:
    dense = {"a_acc": [1.0, 1.0, 0.0, 1.0], "b_acc": [0.0, 0.0], "b_acc_norm": [1.0, 1.0]}
    plan = {"a_acc": [1.0, 0.0, 0.0, 1.0], "b_acc": [1.0, 1.0], "b_acc_norm": [1.0, 1.0]}
    found = by_task(plan, dense)
    assert list(found) == ["a", "b", "all items"]
    assert found["a"].mean == -0.25 and found["b"].verdict.startswith("gains")
    whole = pooled(found)
    assert whole is not None and whole.items == 6 and whole.mean == pytest.approx(1 / 6)
