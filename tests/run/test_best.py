"""`best/` under a latency bound is chosen by what was measured, and by selection KL among those that meet it."""

from __future__ import annotations

from types import SimpleNamespace

import pandas as pd

from autoprune.objective import Constraint
from autoprune.run import outputs

FRONT = pd.DataFrame(
    {
        "key": ["quick", "kept", "late"],
        "decode_ratio": [0.50, 0.58, 0.63],
        "kl_selection": [0.9, 0.5, 0.3],
        "params_ratio": [0.4, 0.5, 0.6],
    }
)


def _run(bound: float) -> tuple[SimpleNamespace, tuple[Constraint, ...]]:
    space = SimpleNamespace(dense=None, cost=lambda candidate: {"decode": 10.0})
    return SimpleNamespace(space=space), (Constraint("decode", bound),)


def test_the_measured_ratio_decides() -> None:
    assert outputs._constrained(*_run(6.0), FRONT)["key"] == "kept"  # type: ignore[arg-type]
    assert outputs._constrained(*_run(7.0), FRONT)["key"] == "late"  # type: ignore[arg-type]


def test_no_slower_than_the_bound_comes_before_a_little_slower() -> None:
    assert outputs._constrained(*_run(6.2), FRONT)["key"] == "kept"  # type: ignore[arg-type]
    slower = FRONT.assign(decode_ratio=[0.625, 0.68, 0.63])
    assert outputs._constrained(*_run(6.2), slower)["key"] == "late"  # type: ignore[arg-type]


def test_when_none_meets_the_bound_the_fastest_is_taken() -> None:
    assert outputs._constrained(*_run(4.0), FRONT)["key"] == "quick"  # type: ignore[arg-type]


def test_without_times_the_lowest_selection_kl_is_taken() -> None:
    untimed = FRONT.assign(decode_ratio=None)
    assert outputs._constrained(*_run(4.0), untimed)["key"] == "late"  # type: ignore[arg-type]


def test_without_constraints_it_is_the_largest_within_half_the_parameters() -> None:
    assert outputs._half(FRONT)["key"] == "kept"
