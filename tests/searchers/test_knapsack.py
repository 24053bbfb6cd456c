"""Exact allocation: as brute force says, on every kind of cost, with and without a trust region."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoprune.objective import Array, Constraint
from autoprune.searchers import knapsack
from autoprune.searchers.knapsack import Choice, Knapsack, minimise, minimise_jointly
from autoprune.space import CostTable

COSTS = ("whole", "uneven", "real", "huge")


def instance(kind: str, seed: int, genes: int = 6) -> tuple[list[Array], CostTable]:
    """Values with a few infinite and negative ones, and a table of the asked kind of cost."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 5, genes)
    values = [rng.lognormal(0, 1.5, n) - 0.3 for n in sizes]
    for row in values:
        if len(row) > 2:
            row[rng.integers(len(row))] = np.inf
    draw = {
        "whole": lambda n: 7.0 * np.arange(n),
        "uneven": lambda n: np.cumsum(rng.integers(0, 40, n)).astype(float),
        "real": lambda n: np.cumsum(rng.uniform(0, 2, n)),
        "huge": lambda n: np.cumsum(rng.integers(0, 2**40, n)).astype(float),
    }[kind]
    entries = tuple(tuple(draw(int(n)).tolist()) for n in sizes)
    return values, CostTable("params", 0.5 if kind == "real" else 11.0, entries)


def brute(
    values: Sequence[Array],
    tables: Sequence[CostTable],
    bounds: Sequence[float],
    allowed: Sequence[Sequence[int]] | None = None,
) -> float | None:
    """The least sum within the bounds, from all choices."""
    rows = [range(len(v)) for v in values] if allowed is None else allowed
    found = [
        sum(v[o] for v, o in zip(values, choice, strict=True))
        for choice in itertools.product(*rows)
        if all(t.total(choice) <= b * (1 + 1e-9) for t, b in zip(tables, bounds, strict=True))
    ]
    finite = [value for value in found if np.isfinite(value)]
    return min(finite) if finite else None


def check(choice: Choice | None, values: Sequence[Array], expected: float | None) -> None:
    """Equal value, or nothing where nothing fits."""
    if expected is None:
        assert choice is None
    else:
        assert choice is not None
        assert sum(v[o] for v, o in zip(values, choice, strict=True)) == pytest.approx(expected, abs=1e-9)


def bounds_of(table: CostTable) -> list[float]:
    """From none to all of the dense cost, an exact sum among them."""
    middle = table.total([len(row) // 2 for row in table.entries])
    return [table.base - 1, *np.linspace(table.smallest, table.dense, 7), middle, 2 * table.dense]


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("seed", range(4))
def test_one_bound_is_solved_as_brute_force_does(kind: str, seed: int) -> None:
    values, table = instance(kind, seed)
    program = Knapsack(values, table, table.dense)
    for bound in bounds_of(table):
        expected = brute(values, [table], [bound])
        check(minimise(values, table, Constraint("params", bound)), values, expected)
        check(program.best(min(bound, table.dense)), values, expected)


@pytest.mark.parametrize("kind", COSTS)
@pytest.mark.parametrize("seed", range(3))
def test_several_bounds_are_solved_as_brute_force_does(kind: str, seed: int) -> None:
    values, table = instance(kind, seed)
    other = instance("real", seed)[1]
    for share in (0.0, 0.3, 0.5, 0.8):
        bounds = [t.smallest + share * (t.dense - t.smallest) for t in (table, other)]
        limits = [Constraint("params", bounds[0]), Constraint("params", bounds[1])]
        choice = minimise_jointly(values, [table, other], limits)
        check(choice, values, brute(values, [table, other], bounds))


@pytest.mark.parametrize("kind", COSTS)
def test_only_allowed_options_are_taken(kind: str) -> None:
    values, table = instance(kind, 3)
    allowed = [sorted({0, len(row) - 1}) for row in values]
    for bound in bounds_of(table):
        expected, limit = brute(values, [table], [bound], allowed), Constraint("params", bound)
        for choice in (
            minimise(values, table, limit, allowed),
            minimise_jointly(values, [table], [limit], allowed),
        ):
            check(choice, values, expected)
            assert choice is None or all(o in row for o, row in zip(choice, allowed, strict=True))


def test_a_gene_without_a_usable_option_fits_nowhere() -> None:
    values, table = instance("whole", 0)
    values[2] = np.full(len(values[2]), np.inf)
    limit = Constraint("params", table.dense)
    assert minimise(values, table, limit) is None
    assert minimise_jointly(values, [table], [limit]) is None


def test_a_thinned_front_keeps_the_bound_and_loses_little(monkeypatch: pytest.MonkeyPatch) -> None:
    values, table = instance("real", 5, genes=30)
    limits = [Constraint("params", share * table.dense) for share in (0.5, 0.7, 0.9)]
    exact = [minimise(values, table, limit) for limit in limits]
    monkeypatch.setattr(knapsack, "STATES", 2000)
    for limit, best in zip(limits, exact, strict=True):
        thinned = minimise(values, table, limit)
        assert thinned is not None and best is not None
        assert table.total(thinned) <= limit.bound * (1 + 1e-9)
        tighter = Constraint("params", limit.bound - table.dense * 30 / 2000)
        reference = minimise(values, table, tighter)
        assert reference is not None
        low, value, high = (
            sum(v[o] for v, o in zip(values, c, strict=True)) for c in (best, thinned, reference)
        )
        assert low - 1e-9 <= value <= high + 1e-9


def test_what_the_solver_writes_stays_out_of_the_output(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from scipy import optimize

    solve = optimize.milp

    def chatty(*given: Any, **settings: Any) -> Any:
        ctypes.CDLL(None).puts(b"tmpSolver.run();")
        return solve(*given, **settings)

    monkeypatch.setattr(optimize, "milp", chatty)
    values, table = instance("real", 0)
    bound = Constraint("a", table.dense * 0.9)
    assert minimise_jointly(values, (table, table), (bound, bound)) is not None
    ctypes.CDLL(None).fflush(None)
    assert capfd.readouterr().out == ""
