"""Pieces cover a batch exactly once, are cut where little is shared, and depend on nothing else."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.executors.pieces import SLACK, Piece, cut, runs
from autoprune.space import Plan

BLOCKS, GROUPS, WIDTHS, SEQUENCES = 8, 4, 9, 8


def relatives(count: int, changes: int, seed: int = 0) -> list[Plan]:
    """Plans that differ from one parent in a few sites."""
    rng = np.random.default_rng(seed)
    parent = [(int(rng.integers(1, GROUPS)), 48 * int(rng.integers(1, WIDTHS))) for _ in range(BLOCKS)]
    found = [Plan.of(parent)]
    while len(found) < count:
        pairs = list(parent)
        for _ in range(changes):
            block = int(rng.integers(BLOCKS))
            groups, width = pairs[block]
            if rng.random() < 0.5:
                pairs[block] = (int(rng.integers(GROUPS)), width)
            else:
                pairs[block] = (groups, 48 * int(rng.integers(WIDTHS)))
        found.append(Plan.of(pairs))
    return found


def cells(pieces: list[Piece]) -> list[tuple[int, int]]:
    """Every (plan, window) of every piece."""
    return sorted((plan, window) for p in pieces for plan in p.plans for window in range(*p.windows))


def passes(windows: tuple[int, int]) -> int:
    """Micro-batches of a range."""
    return -(-(windows[1] - windows[0]) // SEQUENCES)


def total_runs(plans: list[Plan], pieces: list[Piece]) -> int:
    return sum(runs([plans[i] for i in p.plans]) * passes(p.windows) for p in pieces)


@pytest.mark.parametrize("count", [1, 2, 6, 24, 64])
@pytest.mark.parametrize("windows", [(0, 2), (3, 11), (0, 16), (5, 70)])
@pytest.mark.parametrize("workers", [1, 2, 5])
def test_each_plan_meets_each_window_once_within_the_slack(
    count: int, windows: tuple[int, int], workers: int
) -> None:
    plans = relatives(count, 4)
    pieces = cut(plans, windows, SEQUENCES, workers)
    assert cells(pieces) == [(p, w) for p in range(count) for w in range(*windows)]
    assert total_runs(plans, pieces) <= (1 + SLACK) * runs(plans) * passes(windows)
    starts = {(p.windows[0] - windows[0]) % SEQUENCES for p in pieces}
    assert starts == {0}, "a micro-batch was cut"
    assert cut(list(plans), windows, SEQUENCES, workers) == pieces


@pytest.mark.parametrize("workers", [2, 3])
def test_there_is_work_for_everybody_and_small_pieces_at_the_end(workers: int) -> None:
    pieces = cut(relatives(64, 6), (0, 4), SEQUENCES, workers)
    assert len(pieces) > workers
    assert max(len(p.plans) for p in pieces) < 64 / workers


def test_many_windows_are_cut_rather_than_plans_that_share() -> None:
    plans = relatives(2, 1)  # nearly the same plan twice
    assert total_runs(plans, cut(plans, (0, 32), SEQUENCES, 2)) == runs(plans) * 4
    assert {p.windows for p in cut(plans, (0, 32), SEQUENCES, 2)} != {(0, 32)}


def test_what_cannot_be_cut_cheaply_stays_whole() -> None:
    parent = [(2, 96)] * BLOCKS
    twins = [Plan.of([*parent[:-1], (2, width)]) for width in (48, 144)]
    assert cut(twins, (0, 4), SEQUENCES, 2) == [Piece((0, 1), (0, 4))]


def test_cuts_are_made_where_the_trie_branches_early() -> None:
    """Two families that share nothing: the free cut is between them."""
    families = [[Plan.of([(g, 96)] * (BLOCKS - 1) + [(2, 48 * w)]) for w in range(1, 5)] for g in (1, 2)]
    plans = [plan for pair in zip(*families, strict=True) for plan in pair]
    pieces = cut(plans, (0, 4), SEQUENCES, 2)
    assert sorted(sorted(p.plans) for p in pieces) == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_a_small_batch_and_none() -> None:
    assert cut([], (0, 4), SEQUENCES, 2) == []
    assert cut(relatives(1, 1), (0, 4), SEQUENCES, 2) == [Piece((0,), (0, 4))]


def test_runs_are_those_of_the_trie() -> None:
    a, b = Plan.of([(1, 48)] * 3), Plan.of([(1, 48), (1, 48), (1, 0)])
    assert runs([a]) == 6 and runs([b]) == 5
    assert runs([a, b]) == 6 and runs([a, a]) == 6
    assert runs([a, Plan.of([(2, 48)] * 3)]) == 12
