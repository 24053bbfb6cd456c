"""EEP: distinct experts are selected, then mixed, and what is found beats what it started from."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError, UnboundedError
from autoprune.objective import Objective, Proposal, Result, Status, parse_constraint
from autoprune.run.seeds import seed_candidates
from autoprune.searchers import eep
from autoprune.searchers.eep import EEP
from autoprune.searchers.problem import Problem
from autoprune.searchers.random import Random
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate
from autoprune.sublayers import SpacePart, join
from search_spaces.experts import Experts
from search_spaces.merging import Merging
from tests.tabular import SHAPE

E, BLOCKS = 6, SHAPE.blocks
MOE = dataclasses.replace(SHAPE, model_type="mixtral", experts=E, experts_per_token=2)
PARTS = (Experts(per_token=[2]), Merging())
rng = np.random.default_rng(0)
TARGET = (
    rng.normal(size=(BLOCKS, 3, E)) * 0.4
    + np.eye(E)[rng.permuted(np.tile(np.arange(E), (BLOCKS, 1)), axis=1)[:, :3]]
)


def problem(parts: Sequence[SpacePart] = PARTS, bound: str | None = "0.5x", **settings: Any) -> Problem:
    space = join(parts, MOE, [AnalyticCosts(MOE)])
    limits = () if bound is None else (parse_constraint("expert_bytes", bound, space.cost(space.dense)),)
    seeds = seed_candidates(space, limits, (0.5,), 0)
    return Problem(space, (Objective("kl"),), limits, **{"seeds": seeds, "windows": 8, **settings})


def rows(asked: Problem, candidate: Candidate) -> np.ndarray:
    """[blocks, 2, kept, experts]"""
    plan, found = asked.space.decode(candidate), []
    for block in range(BLOCKS):
        text = dict(plan.at(block, "ffn").settings).get("merge")
        found.append([np.eye(E)[:3]] * 2 if text is None else json.loads(str(text)))
    return np.array(found)


def loss(asked: Problem, proposal: Proposal) -> Result:
    """How far the mixture is from the target, whatever the order of rows."""
    found = rows(asked, proposal.candidate)[:, 0]
    apart = np.abs(found[:, :, None] - TARGET[:, None]).sum(-1)
    return Result(
        proposal, Status.OK, {"kl": float(apart.min(1).sum()), **asked.space.cost(proposal.candidate)}
    )


def drive(searcher: EEP, asked: Problem) -> list[Result]:
    told: list[Result] = []
    while not searcher.finished:
        results = [loss(asked, p) for p in searcher.ask(searcher.batch)]
        searcher.tell(results)
        told += results
    return told


def make(asked: Problem, **settings: Any) -> EEP:
    return EEP(asked, **{"initial": 10, "evaluations": 80, "windows": 2, **settings})


def test_rows_are_distinct_experts_until_they_are_mixed() -> None:
    asked = problem()
    told = drive(make(asked), asked)
    assert len(told) == 80 and len({r.proposal.candidate for r in told}) == 80
    for number, result in enumerate(told):
        found = rows(asked, result.proposal.candidate)
        chosen = ((found == 0) | (found == 1)).all() and (found.sum(-1) == 1).all()
        if number < 20:
            assert chosen and (found.sum(2) <= 1).all() and np.array_equal(found[:, 0], found[:, 1])
    assert not chosen


def test_the_ladders_own_order_comes_first_and_counts_are_those_of_the_uniform_plan() -> None:
    asked = problem()
    told = drive(make(asked), asked)
    assert told[0].proposal.candidate == asked.seeds[0]
    for result in told:
        plan = asked.space.decode(result.proposal.candidate)
        assert [plan.at(b, "ffn").get("experts") for b in range(BLOCKS)] == [3] * BLOCKS
        assert not asked.constraints[0].violation(result.metrics)


def test_each_phase_finds_better_ones() -> None:
    asked = problem()
    values = [r.metrics["kl"] for r in drive(make(asked, evaluations=400), asked)]
    assert min(values[:100]) < values[0]
    assert min(values) < 0.97 * min(values[:100]), "mixing gets nearer than selecting"
    selecting = [r.metrics["kl"] for r in drive(make(asked, evaluations=400, prune=1.0), asked)]
    assert min(values) < min(selecting)


def test_crossover_joins_what_made_others_better_than_their_parents(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = problem()
    searcher = make(asked, prune=0.0, initial=1)
    (first,) = searcher.ask(1)
    searcher.tell([loss(asked, first)])
    own = searcher._genome(first.candidate)
    told, values = [], (0.9, 0.95, 1.5)  # of the first: 1
    for number, value in enumerate(values):
        genome = own.copy()
        genome[number % BLOCKS, :, number % 3] += 0.25
        candidate = searcher._candidate(genome)
        searcher._parents[candidate] = first.candidate
        proposal = Proposal(number + 1, candidate, first.fidelity)
        told.append(Result(proposal, Status.OK, {"kl": value * searcher._found[0][0]}))
    searcher.tell(told)
    monkeypatch.setattr(eep, "FIRST", 1.0)
    joined = searcher._joined(sorted(searcher._found), np.random.default_rng(0))
    expected = own.copy()
    for number in range(2):
        expected[number, :, number] += 0.25
    assert np.array_equal(joined, expected), "both better ones, not the worse one"


def test_same_seed_same_proposals() -> None:
    first, same, other = (problem(seed=s) for s in (0, 0, 1))
    traces = [[r.proposal for r in drive(make(p), p)] for p in (first, same, other)]
    assert traces[0] == traces[1] != traces[2]


def test_fewer_to_start_from_than_a_batch_is_no_end() -> None:
    asked = problem()
    assert len(drive(make(asked, initial=3, evaluations=40), asked)) == 40


def test_failures_are_left_out_and_nothing_is_asked_before_it_was_told() -> None:
    asked = problem()
    searcher = make(asked)
    proposals = searcher.ask(8)
    assert len(proposals) == 8 and searcher.ask(8) == [] and not searcher.finished
    searcher.tell(
        [Result(p, Status.FAILED, {}, reason="none") for p in proposals[:7]] + [loss(asked, proposals[7])]
    )
    assert searcher.finalists() == [proposals[7].candidate] and searcher.ask(3)


def test_the_best_are_finalists_and_tokens_bound_the_evaluations() -> None:
    asked = problem(tokens=30 * 2 * 16, window=16)
    searcher = make(asked)
    told = drive(searcher, asked)
    assert len(told) == 30
    best = sorted(told, key=lambda r: (r.metrics["kl"], r.proposal.id))
    assert searcher.finalists() == [r.proposal.candidate for r in best[:20]]


def test_mistakes_are_refused() -> None:
    with pytest.raises(SettingError, match=r"search=eep merges experts: it needs space=\[experts,merging\]"):
        make(problem((Experts(per_token=[2]),)))
    with pytest.raises(UnboundedError):
        make(problem(bound=None))
    with pytest.raises(SettingError, match="search.prune=1.5"):
        make(problem(), prune=1.5)
    with pytest.raises(SettingError, match="search.initial=0"):
        make(problem(), initial=0)
    with pytest.raises(SettingError, match="search=random takes option genes only"):
        Random(problem())
