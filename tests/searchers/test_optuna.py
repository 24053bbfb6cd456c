"""Optuna's samplers: told what was evaluated, silent, deterministic; TPE and GP without a memory."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from autoprune.errors import SettingError
from autoprune.searchers.optuna_nsga2 import OptunaNSGA2
from autoprune.searchers.optuna_study import OptunaSearcher
from autoprune.searchers.problem import Problem
from autoprune.searchers.several import Fitting
from autoprune.searchers.tpe import TPE
from autoprune.shape import AnalyticCosts
from autoprune.space import OptionGene, Plan
from autoprune.sublayers import SublayerSpace
from tests.contracts import SearcherContract
from tests.searchers.methods import make_gp, make_optuna_nsga2, make_tpe
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, failing, tabular_problem

MAKES: dict[str, Callable[..., Any]] = {"tpe": make_tpe, "gp": make_gp, "optuna_nsga2": make_optuna_nsga2}
MEMORYLESS = {"tpe": make_tpe, "gp": make_gp}
BOUND = {"params": "0.6x"}


class TestTPE(SearcherContract):
    def make(self, problem: Problem, **settings: Any) -> TPE:
        return make_tpe(problem, **settings)


class TestOptunaNSGA2(SearcherContract):
    def make(self, problem: Problem, **settings: Any) -> OptunaNSGA2:
        return make_optuna_nsga2(problem, **settings)


def small(name: str, problem: Problem) -> Any:
    """A searcher that models from its 13th candidate on, GP from its 15th."""
    settings: dict[str, Any] = {"tpe": {"startup": 12, "batch": 4}, "gp": {"startup": 14, "batch": 2}}
    return MAKES[name](problem, **settings.get(name, {}))


def told(searcher: OptunaSearcher) -> list[optuna.trial.FrozenTrial]:
    """What the sampler would be given now, less the trials that were only asked."""
    return [t for t in searcher.study().get_trials(deepcopy=False) if t.state is TrialState.COMPLETE]


@pytest.mark.parametrize("name", MEMORYLESS)
def test_telling_alone_brings_a_searcher_to_where_it_was(name: str) -> None:
    problem = tabular_problem(BOUND, (KL, PARAMS))
    evaluate = failing(Tabular(problem.space), lambda p: p.id == 5)
    first, second = small(name, problem), small(name, problem)
    done = drive(first, evaluate, 16)
    for start in range(0, 16, first.batch):
        second.tell(done[start : start + first.batch])
    assert first.ask(2) == second.ask(2)


@pytest.mark.parametrize("name", MEMORYLESS)
def test_every_batch_draws_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study made anew from one and the same seed would suggest the same again and again."""
    searcher, seeds = small(name, tabular_problem(BOUND, (KL, PARAMS))), []
    made = searcher.sampler
    monkeypatch.setattr(searcher, "sampler", lambda seed: seeds.append(seed) or made(seed))
    done = drive(searcher, Tabular(searcher.problem.space), 12)
    assert len(set(seeds)) == len(seeds) == len(done) // searcher.batch


@pytest.mark.parametrize("name", MAKES)
def test_optuna_is_told_what_was_evaluated_and_its_room_under_the_bounds(name: str) -> None:
    problem = tabular_problem({"params": "0.6x", "decode": "0.7x"}, (KL, PARAMS))
    searcher = small(name, problem)
    done = drive(searcher, failing(Tabular(problem.space), lambda p: p.id == 3), 12)
    dense = problem.space.cost(problem.space.dense)
    good = [r for r in done if r.ok]
    assert len(good) == len(done) - 1
    for trial, result in zip(told(searcher), good, strict=True):
        assert tuple(trial.params.values()) == result.proposal.candidate.indices()
        assert trial.values[0] == pytest.approx(np.log(result.metrics["kl"]))
        for c in problem.constraints:
            room = (result.metrics[c.metric] - c.bound) / dense[c.metric]
            assert trial.constraints[c.metric] == pytest.approx(min(0.0, room)) and room <= 1e-9


@pytest.mark.parametrize("name", MAKES)
def test_the_seeds_come_first_and_nothing_twice(name: str) -> None:
    problem = tabular_problem(BOUND, (KL, PARAMS))
    done = [r.proposal.candidate for r in drive(small(name, problem), Tabular(problem.space), 16)]
    assert tuple(done[: len(problem.seeds)]) == problem.seeds and len(set(done)) == len(done)


@pytest.mark.parametrize("name", MAKES)
def test_better_than_its_own_random_start(name: str) -> None:
    problem = tabular_problem({}, (KL,))
    count = 22 if name == "gp" else 96
    searcher = small(name, problem)
    searcher._fitting = Fitting(problem, searcher._sizes, 0.0)
    searcher._seeds = []
    losses = [r.metrics["kl"] for r in drive(searcher, Tabular(problem.space), count)]
    assert np.mean(losses[-6:]) < 0.7 * np.mean(losses[:12])


@pytest.mark.parametrize("name", MAKES)
def test_candidates_of_a_batch_know_of_each_other(name: str) -> None:
    """Alone or as the first of a batch: the same; and no two of a batch are."""
    problem = tabular_problem(BOUND, (KL, PARAMS))
    batches = []
    for n in (1, 2):
        searcher = small(name, problem)
        drive(searcher, Tabular(problem.space), 14)
        batches.append([p.candidate for p in searcher.ask(n)])
    assert batches[1][0] == batches[0][0] and len(set(batches[1])) == 2


def test_running_candidates_are_shown_to_the_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, seen = tabular_problem(BOUND, (KL, PARAMS)), []
    original = optuna.samplers.TPESampler.sample_relative

    def spy(self: Any, study: Any, trial: Any, space: Any) -> Any:
        states = [t.state for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        seen.append((states.count(TrialState.COMPLETE), states.count(TrialState.RUNNING)))
        return original(self, study, trial, space)

    monkeypatch.setattr(optuna.samplers.TPESampler, "sample_relative", spy)
    drive(small("tpe", problem), Tabular(problem.space), 8)
    assert seen == [(0, 0), (0, 1), (0, 2), (0, 3), (4, 0), (4, 1), (4, 2), (4, 3)]


def test_nothing_is_logged_and_the_level_is_put_back(caplog: pytest.LogCaptureFixture) -> None:
    problem, before = tabular_problem(BOUND, (KL, PARAMS)), optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level(logging.DEBUG):
            for name in MAKES:
                drive(small(name, problem), Tabular(problem.space), 15)
    finally:
        optuna.logging.disable_propagation()
    assert not [r for r in caplog.records if r.name.startswith("optuna")]
    assert optuna.logging.get_verbosity() == before


def test_generations_are_optuna_s_own() -> None:
    """Every told trial carries the generation that Optuna put it into: 8 to each while nothing fails."""
    problem = tabular_problem(BOUND, (KL, PARAMS))
    searcher = make_optuna_nsga2(problem)
    drive(searcher, Tabular(problem.space), 32)
    found = [t.system_attrs["NSGAIISampler:generation"] for t in told(searcher)]
    assert found == [i // 8 for i in range(32)]


@pytest.mark.parametrize("name", MAKES)
def test_a_small_space_ends(name: str) -> None:
    genes = (OptionGene(0, "attention", "kv_groups", (0, 1, 2, 3, 4)),)
    space = SublayerSpace(genes, Plan.of([(4, 64)]), (AnalyticCosts(SHAPE),))
    searcher = small(name, tabular_problem({}, (KL, PARAMS), space=space))
    done = drive(searcher, Tabular(space), 100)
    assert searcher.finished and len({r.proposal.candidate for r in done}) == len(done) <= 5


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("tpe", "batch", 0),
        ("tpe", "candidates", 0),
        ("gp", "startup", 1),
        ("gp", "smallest", 2.0),
        ("optuna_nsga2", "population", 1),
        ("optuna_nsga2", "crossover", 1.5),
        ("optuna_nsga2", "mutation", -0.5),
    ],
)
def test_mistakes_are_refused(name: str, setting: str, value: float) -> None:
    with pytest.raises(SettingError, match=f"search.{setting}={value}"):
        MAKES[name](tabular_problem(), **{setting: value})
