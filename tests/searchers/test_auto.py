"""The flagship: contract, the additive optimum, rounds that improve it, fronts, finalists."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.searchers.auto import Auto
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate, CostTable
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_auto, make_random
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, structured_space, tabular_problem


class TestAuto(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> Auto:
        return make_auto(problem, **settings)


def deep_problem(bounds: dict[str, str], seed: int = 0) -> Problem:
    return tabular_problem(
        bounds, (KL, PARAMS), seed, structured_space(dataclasses.replace(SHAPE, blocks=12))
    )


@pytest.mark.parametrize(
    "bounds", [{"params": "0.6x"}, {"decode": "0.6x"}, {"params": "0.7x", "decode": "0.6x"}]
)
def test_rounds_improve_on_the_additive_optimum_and_on_random(bounds: dict[str, str]) -> None:
    problem = deep_problem(bounds)
    evaluate, searcher = Tabular(problem.space), make_auto(problem)
    while not searcher._anchors:
        searcher.tell([evaluate(p) for p in searcher.ask(8)])
    first = searcher._anchors[0].champion
    drive(searcher, evaluate, 600)
    best = searcher.finalists()[0]
    drawn = min(evaluate.loss(r.proposal.candidate) for r in drive(make_random(problem), evaluate, 600))
    assert evaluate.loss(best) < evaluate.loss(first) < drawn
    assert not any(c.violation(problem.space.cost(best)) for c in problem.constraints)


def test_the_first_champion_is_no_worse_than_what_the_problem_suggests() -> None:
    problem = deep_problem({"params": "0.6x"})
    evaluate, searcher = Tabular(problem.space), make_auto(problem)
    favourite = problem.seeds[1]

    def biased(proposal: Any) -> Any:
        result = evaluate(proposal)
        if proposal.candidate == favourite:
            return dataclasses.replace(
                result,
                metrics={**result.metrics, "kl": 1e-6},
                per_window={"kl": result.per_window["kl"] * 0 + 1e-6},
            )
        return result

    while not searcher._anchors:
        searcher.tell([biased(p) for p in searcher.ask(8)])
    assert searcher._anchors[0].champion == favourite


def test_a_front_has_a_champion_at_every_budget_and_names_them_first() -> None:
    problem = deep_problem({})
    evaluate, searcher = Tabular(problem.space), make_auto(problem, spacing=0.1)
    drive(searcher, evaluate, 1500)
    dense = problem.space.cost(problem.space.dense)["params"]
    ratios = [problem.space.cost(c)["params"] / dense for c in searcher.finalists()[:7]]
    assert ratios == sorted(ratios, reverse=True)
    assert np.allclose(ratios, np.linspace(0.9, 0.3, 7), atol=0.02)
    losses = [evaluate.loss(c) for c in searcher.finalists()[:7]]
    assert losses == sorted(losses)


def test_the_table_is_measured_alone_and_first() -> None:
    problem = deep_problem({"params": "0.6x"})
    asked = make_auto(problem).ask(8)
    changed = [
        np.flatnonzero(np.array(p.candidate.indices()) != problem.space.dense.indices()) for p in asked
    ]
    assert [len(c) for c in changed] == [0] + [1] * (len(asked) - 1)
    assert len(asked) == 1 + sum(int(n) - 1 for n in problem.sizes("auto"))


def test_nothing_left_to_try_ends_it() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    smallest = problem.space.cost(Candidate((0,) * len(problem.space.genes)))["params"]
    problem = tabular_problem({"params": str(smallest)}, (KL, PARAMS))
    searcher = make_auto(problem)
    done = drive(searcher, Tabular(problem.space), 10_000)
    assert searcher.finished and len(done) < 10_000


def promotions(confirm: int) -> tuple[int, int]:
    """How often a worse and a better plan took the champion's place where windows disagree, in three searches."""
    worse = better = 0
    for seed in range(3):
        problem = deep_problem({"params": "0.5x"}, seed)
        evaluate, searcher = Tabular(problem.space, seed, "noisy"), make_auto(problem, confirm=confirm)
        losses: list[float] = []
        for _ in range(60):
            searcher.tell([evaluate(p) for p in searcher.ask(searcher.batch)])
            losses += [evaluate.loss(anchor.champion) for anchor in searcher._anchors]
        worse += sum(b > a for a, b in itertools.pairwise(losses))
        better += sum(b < a for a, b in itertools.pairwise(losses))
    return worse, better


def test_a_confirmation_keeps_lucky_leaders_from_becoming_champions() -> None:
    trusting, careful = promotions(0), promotions(8)
    assert trusting[0] >= 4 and careful[0] <= trusting[0] // 3, (trusting, careful)
    assert careful[1] >= trusting[1] // 2


@pytest.mark.parametrize(
    ("bounds", "settings", "said"),
    [({}, {"spacing": 0.0}, "search.spacing=0.0"), ({}, {"smallest": 1.5}, "search.smallest=1.5")],
)
def test_mistakes_are_refused(bounds: dict[str, str], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make_auto(tabular_problem(bounds, (KL, PARAMS)), **settings)


def test_without_budget_and_cost_it_says_what_to_set() -> None:
    with pytest.raises(SettingError, match="search=auto needs a constraint, or a cost"):
        make_auto(tabular_problem({}, (KL,)))


class _Coupled(SublayerSpace):
    """Once any KV groups are gone, decoding takes much longer, however many: no sum over genes says so."""

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        whole = zip(self.genes, candidate.indices(), self.dense.indices(), strict=True)
        cut = any(g.setting == "kv_groups" and value < last for g, value, last in whole)
        found = dict(super().cost(candidate))
        return {**found, "decode": found["decode"] * (3 if cut else 1)}

    def cost_table(self, metric: str) -> CostTable | None:
        return None


def test_where_costs_do_not_add_up_it_also_starts_with_one_kind_of_genes_left_alone() -> None:
    plain = structured_space(dataclasses.replace(SHAPE, blocks=12))
    space = _Coupled(plain.genes, plain.full, plain.costs)
    problem = tabular_problem({"params": "0.7x", "decode": "1x"}, (KL, PARAMS), space=space)
    evaluate, searcher = Tabular(plain), make_auto(problem)
    while not searcher._anchors:
        searcher.tell([evaluate(p) for p in searcher.ask(8)])
    top, whole = space.dense.indices(), [g.setting == "kv_groups" for g in space.genes]
    fitting = [
        c
        for c in searcher._opening(searcher._budgets[0])
        if not any(k.violation(space.cost(c)) for k in problem.constraints)
    ]
    assert (first := min(fitting, key=evaluate.loss)) not in problem.seeds
    best = first.indices()
    assert all(value == last for value, last, held in zip(best, top, whole, strict=True) if held)
    assert any(value < last for value, last in zip(best, top, strict=True))
