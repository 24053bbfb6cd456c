"""Random search: new candidates only, wherever the constraints allow."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.searchers.problem import Problem
from autoprune.searchers.random import Random
from autoprune.shape import AnalyticCosts
from autoprune.space import ArrayGene, OptionGene, Plan
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_random
from tests.tabular import SHAPE, Tabular, drive, tabular_problem


class TestRandom(SearcherContract):
    waits = False

    def make(self, problem: Problem, **settings: Any) -> Random:
        return make_random(problem, **settings)


def test_never_the_same_candidate_twice_and_seeds_first() -> None:
    problem = tabular_problem()
    done = drive(make_random(problem), Tabular(problem.space), 200)
    found = [r.proposal.candidate for r in done]
    assert len(set(found)) == len(found) >= 200
    assert tuple(found[: len(problem.seeds)]) == problem.seeds


def test_candidates_cover_small_and_large() -> None:
    problem = tabular_problem()
    dense = problem.space.cost(problem.space.dense)["params"]
    shares = [
        problem.space.cost(r.proposal.candidate)["params"] / dense
        for r in drive(make_random(problem), Tabular(problem.space), 200)
    ]
    assert min(shares) < 0.35 and max(shares) > 0.9


def test_a_small_space_is_exhausted_instead_of_repeated() -> None:
    genes = (OptionGene(0, "attention", "kv_groups", (0, 1, 2, 3, 4)),)
    space = SublayerSpace(genes, Plan.of([(4, 64)]), (AnalyticCosts(SHAPE),))
    searcher = make_random(tabular_problem({"params": "0.7x"}, space=space))
    done = drive(searcher, Tabular(space), 1000)
    assert searcher.finished and searcher.ask(8) == []
    fitting = [
        i
        for i in range(5)
        if space.cost(space.dense.with_value(0, i))["params"] <= 0.7 * space.cost(space.dense)["params"]
    ]
    assert sorted(r.proposal.candidate.indices()[0] for r in done) == fitting


def test_mistakes_are_refused() -> None:
    with pytest.raises(SettingError, match="search.batch=0"):
        make_random(tabular_problem(), batch=0)
    with pytest.raises(SettingError, match="search.windows=0"):
        make_random(tabular_problem(), windows=0)


class _Arrays:
    genes = (ArrayGene(0, "ffn", "merge", (2, 2), 0.0, 1.0),)


def test_array_genes_are_refused() -> None:
    problem = Problem(_Arrays(), (), windows=4)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="search=random takes option genes only"):
        make_random(problem)
