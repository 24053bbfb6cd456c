"""Týr's search: options around what was found, finer each time; switches that keep the split between kinds."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.searchers.problem import Problem
from autoprune.searchers.tyr import Tyr
from autoprune.space import KINDS, OptionGene
from tests.contracts import SearcherContract
from tests.searchers.methods import make_tyr
from tests.tabular import SHAPE, WINDOWS, Tabular, drive, structured_space, tabular_problem

HALF = {"params": "0.5x"}
WIDE = OptionGene(0, "ffn", "width", (0, 64, 128, 256, 512))
SIXTEENS = {f"block{b}.ffn.width": (0, 16, 32, 48, 64) for b in range(SHAPE.blocks)}
GROUPS = OptionGene(0, "attention", "kv_groups", (0, 1, 2, 3))


class TestTyr(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> Tyr:
        return make_tyr(problem, **settings)

    def too_many_windows(self) -> dict[str, Any]:
        return {"windows": (1, 2, WINDOWS + 1)}


def method(**settings: Any) -> Tyr:
    return make_tyr(tabular_problem(HALF), **settings)


def test_the_step_halves_down_to_the_multiple() -> None:
    tyr = method()
    assert tyr.around(WIDE, 256, 0) == tuple(range(0, 513, 64))
    for iteration, step in ((1, 32), (2, 16), (3, 8), (4, 8)):
        assert tyr.around(WIDE, 256, iteration) == tuple(256 + step * n for n in range(-4, 5))
    assert method(ffn_multiple=32).around(WIDE, 256, 3) == tuple(range(128, 385, 32))
    assert method(step=0.25, levels=1).around(WIDE, 256, 0) == (128, 256, 384)


def test_few_groups_do_not_refine_and_many_do() -> None:
    tyr, many = method(), OptionGene(0, "attention", "kv_groups", tuple(range(33)))
    assert all(tyr.around(GROUPS, 2, i) == (0, 1, 2, 3) for i in range(4))
    assert tyr.around(many, 16, 0) == tuple(range(0, 33, 4))
    assert tyr.around(many, 16, 2) == tuple(range(12, 21))


def test_options_stay_within_the_site_and_hold_their_middle() -> None:
    tyr = method()
    for centre in (0, 64, 128, 480, 512):
        for iteration in range(4):
            options = tyr.around(WIDE, centre, iteration)
            assert centre in options and options[0] >= 0 and options[-1] <= 512
            assert not any(0 < o < 64 for o in options), "latency tables have no times below their smallest"
    odd = OptionGene(0, "ffn", "width", (0, 25, 50, 101))
    assert tyr.around(odd, 101, 3)[-1] == 101 and tyr.around(odd, 101, 0)[-1] == 101


def test_only_options_of_one_kind_are_switched_and_the_budget_is_kept() -> None:
    problem = tabular_problem(HALF)
    kinds = [g.kind for g in problem.space.genes]
    searcher = make_tyr(problem)
    searcher.tell([Tabular(problem.space)(p) for p in searcher.ask(searcher.batch)])
    start = searcher.parent.indices()
    spent = problem.space.cost(searcher.parent)
    done = drive(searcher, Tabular(problem.space), 300)
    assert len({r.proposal.candidate for r in done}) > 30
    for result in done:
        values = result.proposal.candidate.indices()
        for kind in KINDS:
            here = [i for i, k in enumerate(kinds) if k == kind]
            assert sum(values[i] for i in here) == sum(start[i] for i in here)
        assert problem.space.cost(result.proposal.candidate)["params"] == spent["params"]


def test_switches_between_kinds_are_possible_where_options_cost_the_same() -> None:
    """A group of this model costs as much as 16 neurons."""
    problem = tabular_problem(HALF, space=structured_space().with_options(SIXTEENS))
    kinds = [g.kind for g in problem.space.genes]
    for same_kind in (True, False):
        searcher = make_tyr(problem, same_kind=same_kind)
        sums = set()
        for result in drive(searcher, Tabular(problem.space), 200)[len(problem.seeds) :]:
            values = result.proposal.candidate.indices()
            sums.add(sum(v for v, kind in zip(values, kinds, strict=True) if kind == "ffn"))
        assert (len(sums) == 1) == same_kind


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"step": 0.0}, "search.step=0 must be above 0"),
        ({"levels": 0}, "search.levels=0 must be at least 1"),
        ({"iterations": 0}, "search.iterations=0 must"),
        ({"follow": 0}, "search.follow=0 is not between"),
        ({"ffn_multiple": 0}, "search.ffn_multiple=0 must"),
        ({"swaps": 0}, "search.swaps=0 must"),
    ],
)
def test_mistakes_name_the_setting(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        method(**settings)


def test_it_needs_a_budget_and_says_its_own_name() -> None:
    with pytest.raises(SettingError, match="search=tyr works at one budget"):
        make_tyr(tabular_problem())
