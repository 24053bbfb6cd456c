"""dp and milp: the optimum of an additive loss, confirmed on windows that the table has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.objective import Proposal, Result
from autoprune.searchers.additive import Additive
from autoprune.searchers.dp import DP
from autoprune.searchers.milp import MILP
from autoprune.searchers.problem import Problem
from autoprune.space import CostTable
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_dp, make_milp
from tests.tabular import KL, PARAMS, WINDOWS, Tabular, drive, failing, structured_space, tabular_problem

TABLE = 49  # dense, and every option of 8 genes alone


class TestDP(SearcherContract):
    least, most_bounds, one_quality = TABLE + 3, 1, True

    def make(self, problem: Problem, **settings: Any) -> DP:
        return make_dp(problem, **settings)


class TestMILP(SearcherContract):
    least, one_quality = TABLE + 3, True

    def make(self, problem: Problem, **settings: Any) -> MILP:
        return make_milp(problem, **settings)


MAKE = pytest.mark.parametrize("make", [make_dp, make_milp])
Make = Callable[..., Additive]


@MAKE
def test_the_table_is_measured_at_dense_and_the_rest_on_other_windows(make: Make) -> None:
    problem = tabular_problem({"params": "0.5x"})
    done = drive(make(problem), Tabular(problem.space), 1000)
    dense = problem.space.dense.indices()
    assert len(done) == TABLE + 8
    for result in done[:TABLE]:
        assert result.proposal.fidelity.windows == (0, 2)
        pairs = zip(result.proposal.candidate.indices(), dense, strict=True)
        assert sum(a != b for a, b in pairs) <= 1
    for result in done[TABLE:]:
        assert result.proposal.fidelity.windows == (2, 6)
        assert not problem.constraints[0].violation(problem.space.cost(result.proposal.candidate))


@MAKE
def test_an_additive_loss_is_solved(make: Make) -> None:
    for bound in ("0.7x", "0.4x"):
        problem = tabular_problem({"params": bound})
        evaluate = Tabular(problem.space, kind="additive")
        searcher = make(problem)
        drive(searcher, evaluate, 1000)
        best = searcher.finalists()[0]
        assert evaluate.loss(best) == pytest.approx(evaluate.optimum(problem.constraints[0]))


def test_milp_solves_under_several_costs() -> None:
    problem = tabular_problem({"params": "0.6x", "decode": "0.6x"})
    evaluate = Tabular(problem.space, kind="additive")
    searcher = make_milp(problem)
    drive(searcher, evaluate, 1000)
    best = evaluate.loss(searcher.finalists()[0])
    singles = [evaluate.optimum(c) for c in problem.constraints]
    assert max(singles) <= best < 1.3 * max(singles)


@MAKE
def test_without_constraints_one_table_gives_a_front(make: Make) -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    evaluate, searcher = Tabular(problem.space, kind="additive"), make(problem, budgets=12)
    assert not searcher.single_target and make(tabular_problem({"params": "0.5x"})).single_target
    done = drive(searcher, evaluate, 1000)
    assert len(done) == TABLE + 12
    (dense,) = {r.metrics["params"] for r in done[:1]}
    for number, result in enumerate(done[TABLE:]):
        bound = dataclasses.replace(
            tabular_problem({"params": "1x"}).constraints[0], bound=dense * (0.3 + 0.7 * number / 12)
        )
        assert not bound.violation(result.metrics)
        assert result.metrics["kl"] == pytest.approx(evaluate.optimum(bound))


@MAKE
def test_what_misleads_the_table_is_seen_when_it_is_confirmed(make: Make) -> None:
    """The optimum of the table fails: the best of the others is named first."""
    problem = tabular_problem({"params": "0.5x"})
    evaluate = Tabular(problem.space, kind="additive")
    searcher = make(problem)
    drive(searcher, evaluate, 1000)
    favourite = searcher.finalists()[0]
    again = make(problem)
    drive(again, failing(evaluate, lambda p: p.candidate == favourite), 1000)
    assert again.finalists() == searcher.finalists()[1:]


@MAKE
def test_options_that_failed_are_not_taken(make: Make) -> None:
    problem = tabular_problem({"params": "0.5x"})
    dense = problem.space.dense

    def fails(proposal: Proposal) -> bool:
        """Every plan that empties a sublayer of an otherwise dense model."""
        values = proposal.candidate.indices()
        return sum(a != b for a, b in zip(values, dense.indices(), strict=True)) == 1 and 0 in values

    def flat(proposal: Proposal) -> Result:
        return dataclasses.replace(
            evaluate(proposal), metrics={"kl": 0.0, **problem.space.cost(proposal.candidate)}
        )

    evaluate = Tabular(problem.space, kind="additive")
    done = drive(make(problem), failing(flat, fails), 1000)
    assert len(done) > TABLE
    assert not [r for r in done[TABLE:] if 0 in r.proposal.candidate.indices()]


class _NotAdditive(SublayerSpace):
    def cost_table(self, metric: str) -> CostTable | None:
        return None


@MAKE
def test_costs_that_do_not_add_up_are_refused(make: Make) -> None:
    plain = structured_space()
    space = _NotAdditive(plain.genes, plain.full, plain.costs)
    for bounds in ({"params": "0.5x"}, {}):
        problem = tabular_problem(bounds, (KL, PARAMS), space=space)
        with pytest.raises(SettingError, match="needs costs that add up over sites, and params does not"):
            make(problem)


@MAKE
@pytest.mark.parametrize(
    "settings",
    [{"finalists": 0}, {"budgets": 0}, {"spread": -1.0}, {"smallest": 2.0}, {"confirm": WINDOWS - 1}],
)
def test_mistakes_are_refused(make: Make, settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(SettingError, match=f"search.{name}={WINDOWS + 1 if name == 'confirm' else value}"):
        make(tabular_problem({"params": "0.5x"}), **settings)


@MAKE
def test_without_any_cost_it_is_refused(make: Make) -> None:
    with pytest.raises(SettingError, match="needs a constraint, or a cost among the objectives"):
        make(tabular_problem())
