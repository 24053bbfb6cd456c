"""Comparison with uniform, coverage, fitness gap, and what the headline may claim."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from autoprune.report import summary


def small(**columns: list[object]) -> pd.DataFrame:
    return pd.DataFrame(columns)


def test_the_front_is_compared_at_no_larger_a_size() -> None:
    rows = small(
        name=["front", "front", "front", "uniform@0.5"],
        params_ratio=[0.52, 0.5, 0.4, 0.5],
        kl_test=[0.1, 0.2, 0.3, 0.8],
        key=["a", "b", "c", "d"],
    )
    line = summary.comparison(rows).iloc[0]
    assert (line["key"], line["front_kl"], line["uniform_kl"]) == ("b", 0.2, 0.8)
    assert line["reduction"] == pytest.approx(75)


def test_rounding_of_a_ratio_does_not_lose_a_point() -> None:
    rows = small(
        name=["front", "uniform@0.5"], params_ratio=[0.5 + 1e-12, 0.5], kl_test=[0.2, 0.8], key=["a", "b"]
    )
    assert summary.comparison(rows)["key"][0] == "a"


def test_a_uniform_row_below_the_front_has_no_reduction() -> None:
    rows = small(name=["front", "uniform@0.3"], params_ratio=[0.5, 0.3], kl_test=[0.2, 0.8], key=["a", "b"])
    assert np.isnan(summary.comparison(rows)["reduction"][0])


def test_beside_never_takes_a_clearly_smaller_uniform(rows: pd.DataFrame) -> None:
    full = summary.complete(rows)
    for size in (0.3, 0.45, 0.6, 0.8):
        hit = summary.beside(full, size)
        assert hit is not None
        assert hit[0] >= size - summary.SAME_SIZE
    assert summary.beside(full, 0.95) is None


def test_largest_gap_counts_the_ends() -> None:
    rows = small(name=["front"] * 3, params_ratio=[0.55, 0.6, 0.95])
    assert summary.largest_gap(rows) == pytest.approx(0.3)
    assert summary.largest_gap(rows, 0.5, 0.6) == pytest.approx(0.05)
    assert summary.largest_gap(rows[:0]) == pytest.approx(0.5)


def test_fitness_gap_is_a_median() -> None:
    rows = small(name=["front"] * 3 + ["uniform@0.5"], kl_test=[1.1, 1.2, 9.0, 50.0], kl_fitness=[1.0] * 4)
    assert summary.fitness_gap(rows) == pytest.approx(0.2)
    assert summary.fitness_gap(rows.drop(columns="kl_test")) is None


def test_the_headline_says_what_was_measured(rows: pd.DataFrame) -> None:
    line = summary.headline(rows)
    assert line.startswith("0.47x of the block parameters: test KL 0.214, against 0.643 for uniform at 0.48x")
    assert "decode measured 0.63x [0.62, 0.65], faster than dense" in line


def test_the_headline_speaks_of_the_same_size_only_when_it_is() -> None:
    rows = small(name=["front", "uniform@0.5"], params_ratio=[0.499, 0.5], kl_test=[0.2, 0.8], key=["a", "b"])
    assert "at the same size" in summary.headline(rows)


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (0.55, 0.65, "faster"),
        (0.55, 0.99, "not told apart"),
        (1.1, 1.3, "slower"),
        (0.99, 1.3, "not told apart"),
    ],
)
def test_a_latency_is_claimed_only_where_intervals_are_apart(low: float, high: float, said: str) -> None:
    rows = small(
        name=["dense", "front"],
        params_ratio=[1.0, 0.5],
        kl_test=[0.0, 0.2],
        key=["d", "a"],
        decode_ms=[1.0, (low + high) / 2],
        decode_low=[0.98, low],
        decode_high=[1.02, high],
        decode_ratio=[1.0, (low + high) / 2],
    )
    line = summary.headline(rows)
    assert said in line
    assert sum(word in line for word in ("faster", "slower", "not told apart")) == 1


def test_without_intervals_nothing_is_claimed(rows: pd.DataFrame) -> None:
    line = summary.headline(rows.drop(columns=["decode_low", "decode_high", "prefill_low", "prefill_high"]))
    assert "decode measured 0.63x (no interval)" in line
    assert "faster" not in line


def test_before_the_test_split_the_selection_split_speaks(rows: pd.DataFrame) -> None:
    line = summary.headline(rows.drop(columns="kl_test"))
    assert "selection KL" in line
    assert "test KL" not in line


def test_an_empty_run_has_a_headline() -> None:
    assert "scored yet" in summary.headline(small(name=["dense"], params_ratio=[1.0], key=["d"]))
