"""Level-switch evolution: the budget is kept, the parent is defended, stages grow."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import Proposal, Result, Status
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.problem import Problem
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, OptionGene, Plan
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_evopress, make_random
from tests.tabular import SHAPE, WINDOWS, Evaluate, Tabular, drive, failing, structured_space, tabular_problem

HALF = {"params": "0.5x"}


class TestEvoPress(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> EvoPress:
        return make_evopress(problem, **settings)

    def too_many_windows(self) -> dict[str, Any]:
        return {"windows": (1, 2, WINDOWS + 1)}


def stages(searcher: EvoPress, evaluate: Evaluate, count: int) -> Iterator[tuple[Candidate, list[Proposal]]]:
    """The parent and the proposals of every stage after the choice among the seeds."""
    searcher.tell([evaluate(p) for p in searcher.ask(searcher.batch)])
    for _ in range(count):
        parent, proposals = searcher.parent, searcher.ask(searcher.batch)
        yield parent, proposals
        searcher.tell([evaluate(p) for p in proposals])


@pytest.mark.parametrize("bounds", [{"params": "0.6x"}, {"decode": "0.6x"}])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_better_than_random_at_the_same_number_of_evaluations(bounds: dict[str, str], seed: int) -> None:
    problem = tabular_problem(
        bounds, seed=seed, space=structured_space(dataclasses.replace(SHAPE, blocks=12))
    )
    evaluate = Tabular(problem.space, seed)
    searcher = make_evopress(problem)
    used = len(drive(searcher, evaluate, 500))
    drawn = min(evaluate.loss(r.proposal.candidate) for r in drive(make_random(problem), evaluate, used))
    assert evaluate.loss(searcher.parent) < drawn


def test_switches_within_a_kind_keep_the_budget_exactly() -> None:
    problem = tabular_problem(HALF)
    space, bound = problem.space, problem.constraints[0].bound
    searcher, seen = make_evopress(problem), set()
    for parent, _ in stages(searcher, Tabular(space), 60):
        assert space.cost(parent)["params"] == bound
        seen.add(parent)
    assert len(seen) > 3, "the parent never moved"
    assert not searcher._unequal


def test_options_of_equal_cost_are_traded_between_kinds() -> None:
    genes = (
        OptionGene(0, "attention", "kv_groups", (0, 1, 2, 3, 4)),
        OptionGene(0, "ffn", "width", (0, 16, 32, 48, 64)),
    )
    space = SublayerSpace(genes, Plan.of([(4, 64)]), (AnalyticCosts(SHAPE),))
    steps = [space.cost(space.dense.with_value(g, 3))["params"] for g in (0, 1)]
    assert steps[0] == steps[1], "the shape no longer has equal options"
    searcher = make_evopress(tabular_problem(HALF, space=space))
    found = {p.candidate.indices() for _, stage in stages(searcher, Tabular(space), 6) for p in stage}
    assert {sum(c) for c in found} == {4} and len(found) == 5


def test_options_of_unequal_cost_are_traded_within_their_kind() -> None:
    problem = tabular_problem(HALF)
    for parent, stage in stages(make_evopress(problem), Tabular(problem.space), 30):
        for proposal in stage:
            steps = np.array(proposal.candidate.indices()) - np.array(parent.indices())
            assert steps[0::2].sum() == 0 and steps[1::2].sum() == 0


def test_unequal_options_may_trade_places_and_leave_no_room() -> None:
    problem = tabular_problem({"decode": "0.6x"})
    searcher = make_evopress(problem)
    assert searcher._unequal
    rng = np.random.default_rng(0)
    start = problem.seeds[0].with_value(0, 0)
    swapped = {searcher._exchange(start, rng).indices() for _ in range(60)}
    assert len(swapped) > 3
    for values in swapped:
        assert sorted(values[0::2]) == sorted(start.indices()[0::2])
        assert sorted(values[1::2]) == sorted(start.indices()[1::2])


def test_a_parent_with_full_and_empty_kinds_only_still_has_children() -> None:
    """No site can trade within its kind there; what one site gives up fills others."""
    problem = tabular_problem({"params": "0.7x"})
    space = problem.space
    start = Candidate((4, 0) * SHAPE.blocks)
    searcher = make_evopress(dataclasses.replace(problem, seeds=(start,)))
    (_, children), *_ = stages(searcher, Tabular(space), 1)
    assert len(children) > 1
    for child in (p.candidate for p in children):
        assert min(child.indices()[0::2]) < 4 and max(child.indices()[1::2]) > 0
        assert not problem.constraints[0].violation(space.cost(child))


def test_stages_grow_in_windows_and_shrink_in_candidates() -> None:
    problem = tabular_problem(HALF)
    rows = [
        (len(s), s[0].fidelity.count) for _, s in stages(make_evopress(problem), Tabular(problem.space), 9)
    ]
    assert rows == [(8, 1), (3, 2), (3, 4)] * 3  # the last two survivors and the parent


def test_the_parent_joins_the_last_stage_only() -> None:
    problem = tabular_problem(HALF)
    for parent, stage in stages(make_evopress(problem), Tabular(problem.space), 30):
        assert (parent in [p.candidate for p in stage]) == (stage[0].fidelity.count == 4)


@pytest.mark.parametrize("settings", [{}, {"windows": (2,), "survivors": (1,)}])
def test_without_noise_the_parent_never_gets_worse(settings: dict[str, Any]) -> None:
    problem = tabular_problem(HALF)
    evaluate = Tabular(problem.space)
    losses = [evaluate.loss(p) for p, _ in stages(make_evopress(problem, **settings), evaluate, 60)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_a_stage_sees_the_same_windows_and_generations_see_others() -> None:
    problem = tabular_problem(HALF)
    starts = {1: set(), 2: set(), 4: set()}
    for _, stage in stages(make_evopress(problem), Tabular(problem.space), 60):
        ((first, last),) = {p.fidelity.windows for p in stage}
        assert 0 <= first < last <= WINDOWS
        starts[last - first].add(first)
    assert all(len(found) > 2 for found in starts.values())


def test_a_generation_that_fails_leaves_the_parent() -> None:
    problem = tabular_problem(HALF)
    evaluate = Tabular(problem.space)
    searcher = make_evopress(problem)
    searcher.tell([evaluate(p) for p in searcher.ask(8)])
    parent = searcher.parent
    drive(searcher, failing(evaluate, lambda p: p.candidate != parent), 60)
    assert searcher.parent == parent
    drive(searcher, failing(evaluate, lambda p: True), 60)
    assert searcher.parent == parent
    drive(searcher, evaluate, 100)
    assert searcher.parent != parent, "it never recovered"


def test_what_failed_does_not_reach_the_next_stage() -> None:
    problem = tabular_problem(HALF)
    evaluate = failing(Tabular(problem.space), lambda p: p.id % 8 > 1)
    bad: set[Candidate] = set()
    for parent, stage in stages(make_evopress(problem), evaluate, 30):
        bad = set() if stage[0].fidelity.count == 1 else bad
        assert not bad & {p.candidate for p in stage if p.candidate != parent}
        bad |= {p.candidate for p in stage if p.id % 8 > 1}


def test_the_best_seed_becomes_the_first_parent() -> None:
    problem = tabular_problem(HALF)
    assert len(problem.seeds) > 1
    for favourite in problem.seeds:
        searcher = make_evopress(problem)
        asked = searcher.ask(8)
        assert [p.candidate for p in asked] == list(problem.seeds) and asked[0].fidelity.count == 4
        searcher.tell([Result(p, Status.OK, {"kl": float(p.candidate != favourite)}) for p in asked])
        assert searcher.parent == favourite


def test_without_seeds_it_starts_from_the_repaired_dense_candidate() -> None:
    problem = tabular_problem(HALF)
    searcher = make_evopress(Problem(problem.space, problem.objectives, problem.constraints, 0, WINDOWS))
    (only,) = searcher.ask(8)
    assert not problem.constraints[0].violation(problem.space.cost(only.candidate))


def test_generations_end_it() -> None:
    problem = tabular_problem(HALF)
    searcher = make_evopress(problem, generations=3)
    done = drive(searcher, Tabular(problem.space), 10_000)
    assert searcher.finished and searcher.ask(8) == []
    assert len(done) == len(problem.seeds) + 3 * (8 + 3 + 3)


def test_a_space_without_neighbours_ends_it() -> None:
    genes = (OptionGene(0, "ffn", "width", (0, 32, 64)),)
    space = SublayerSpace(genes, Plan.of([(4, 64)]), (AnalyticCosts(SHAPE),))
    searcher = make_evopress(tabular_problem({"params": "0.8x"}, space=space))
    done = drive(searcher, Tabular(space), 1000)
    assert searcher.finished and len(done) == 1


def test_no_constraint_is_refused() -> None:
    with pytest.raises(SettingError, match="params: 0.6x"):
        make_evopress(tabular_problem())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"survivors": (3, 2)}, "equal lengths"),
        ({"survivors": (3, 2, 2)}, "survivor of 1"),
        ({"survivors": (), "windows": ()}, "equal lengths"),
        ({"survivors": (2, 3, 1)}, "must fall"),
        ({"survivors": (9, 2, 1)}, "search.offspring=8"),
        ({"swaps": 0}, "search.swaps=0"),
        ({"generations": 0}, "search.generations=0"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        make_evopress(tabular_problem(HALF), **settings)
