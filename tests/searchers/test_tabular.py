"""Tabular problems: what each kind promises, and that its optimum is one."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import Fidelity, Proposal, Split
from autoprune.searchers import sensitivity
from autoprune.searchers.knapsack import minimise
from autoprune.searchers.tabular import PAIRS, WINDOWS, Tabular
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, OptionGene, Plan
from autoprune.study import Searcher
from autoprune.sublayers import SublayerSpace
from tests.searchers.methods import METHODS, SHORT
from tests.tabular import KL, PARAMS, SHAPE, StepCosts, drive, tabular_problem

KINDS = sorted(PAIRS)


def small() -> SublayerSpace:
    """Few enough plans to look at them all."""
    genes = tuple(
        OptionGene(b, k, s, o)
        for b in range(3)
        for k, s, o in (("attention", "kv_groups", (0, 2, 4)), ("ffn", "width", (0, 16, 64)))
    )
    return SublayerSpace(genes, Plan.of([(4, 64)] * 4), (AnalyticCosts(SHAPE), StepCosts()))  # type: ignore[arg-type]


def at(candidate: Candidate, start: int, stop: int) -> Proposal:
    return Proposal(0, candidate, Fidelity(Split.FITNESS, (start, stop)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bounds", [{"params": "0.5x"}, {"decode": "0.6x"}, {"params": "0.8x"}])
def test_the_optimum_is_the_least_of_all_plans(kind: str, bounds: dict[str, str]) -> None:
    space = small()
    (limit,) = tabular_problem(bounds, space=space).constraints
    evaluate = Tabular(space, 1, kind)
    every = (Candidate(v) for v in itertools.product(range(3), repeat=6))
    least = min(evaluate.loss(c) for c in every if not limit.violation(space.cost(c)))
    assert evaluate.optimum(limit) == pytest.approx(least)


@pytest.mark.parametrize("kind", KINDS)
def test_windows_average_to_the_loss_and_only_noisy_ones_differ(kind: str) -> None:
    space = small()
    evaluate = Tabular(space, 2, kind)
    assert evaluate.loss(space.dense) == 0.0
    other = Candidate((0, 1, 2, 2, 1, 0))
    result = evaluate(at(other, 0, WINDOWS))
    assert result.metrics["kl"] == pytest.approx(evaluate.loss(other)) and result.metrics["params"] > 0
    assert (float(np.ptp(result.per_window["kl"])) > 0.05) == (kind == "noisy")
    part = evaluate(at(other, 3, 7))
    assert part.per_window["kl"].tolist() == result.per_window["kl"][3:7].tolist()
    assert part.metrics["kl"] == pytest.approx(part.per_window["kl"].mean())


def test_noise_is_paired() -> None:
    """What a window thinks of two plans that differ in one gene differs far less than what windows think of one."""
    space = small()
    evaluate = Tabular(space, 0, "noisy")
    values = [evaluate(at(Candidate(c), 0, WINDOWS)).per_window["kl"] for c in ((0, 1, 1, 1, 1, 1), (1,) * 6)]
    assert np.std(values[0] - values[1]) < 0.6 * np.std(values[0])


@pytest.mark.parametrize(("kind", "exact"), [("additive", True), ("deceptive", False)])
def test_single_moves_tell_the_truth_or_mislead(kind: str, exact: bool) -> None:
    problem = tabular_problem({"params": "0.5x"})
    space, (limit,) = problem.space, problem.constraints
    evaluate, sizes = Tabular(space, 0, kind), problem.sizes("dp").tolist()
    changes = {
        (v.gene, v.option): evaluate.loss(v.candidate) for v in sensitivity.variations(space.dense, sizes)
    }
    table = space.cost_table("params")
    assert table is not None
    choice = minimise(sensitivity.effects(space.dense, sizes, changes), table, limit)
    assert choice is not None
    share = evaluate.loss(Candidate(choice)) / evaluate.optimum(limit)
    assert share == pytest.approx(1.0) if exact else share > 1.2


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(SettingError, match="did you mean 'noisy'"):
        Tabular(small(), 0, "nosy")


@pytest.mark.parametrize("name", sorted(set(METHODS) - set(SHORT)))
def test_every_method_solves_an_additive_loss_to_one_per_cent(name: str) -> None:
    """But for those whose models of what was told take too long for so many evaluations."""
    make: Callable[..., Searcher] = METHODS[name]
    settings: dict[str, Any] = {"greedy": {"step": 1, "fills": 40}}.get(name, {})
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS), space=small())
    evaluate, (limit,) = Tabular(problem.space, 0, "additive"), problem.constraints
    searcher, goal = make(problem, **settings), 1.01 * evaluate.optimum(limit)

    def near() -> bool:
        done = drive(searcher, evaluate, 1)  # one batch
        fitting = [r.proposal.candidate for r in done if not limit.violation(r.metrics)]
        return min(map(evaluate.loss, fitting), default=goal + 1) <= goal

    assert any(near() for _ in range(200))
