"""Suites that every searcher and every space must pass.

Subclass a contract in a test file, name the subclass `Test…` and give it a `make`; pytest collects the rest.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoprune.errors import InfeasibleError, SettingError, SpaceError
from autoprune.objective import parse_constraint
from autoprune.searchers.problem import Problem
from autoprune.space import KINDS, Candidate, CostModel, CostTable, Plan, Space, plan_cost
from autoprune.study import Searcher
from tests.tabular import (
    DECODE,
    KL,
    NLL,
    PARAMS,
    SHAPE,
    WINDOWS,
    Tabular,
    drive,
    failing,
    tabular_problem,
    trace,
)


class SearcherContract:
    """What a study relies on. `waits`: the searcher proposes nothing more before it is told.

    `least`: how many evaluations it makes at least before it is finished; `most_bounds`: how many constraints it takes;
    `one_quality`: it takes one quality and at most one cost.
    """

    waits = True
    least = 120
    most_bounds = 2
    one_quality = False

    def make(self, problem: Problem, **settings: Any) -> Searcher:
        """The searcher with settings small enough for `WINDOWS` windows; `windows` may be overridden."""
        raise NotImplementedError

    def too_many_windows(self) -> dict[str, Any]:
        """Settings that ask for more windows than there are."""
        return {"windows": WINDOWS + 1}

    @pytest.fixture
    def problem(self) -> Problem:
        return tabular_problem({"params": "0.6x"}, (KL, PARAMS))

    def test_same_seed_and_tells_same_proposals(self, problem: Problem) -> None:
        assert trace(self.make(problem), problem) == trace(self.make(problem), problem)

    def test_what_it_is_told_matters_only_through_results(self, problem: Problem) -> None:
        """Proposals may depend on the past, never on when or in which object they were made."""
        first, second = self.make(problem), self.make(problem)
        for _ in range(4):
            ours, theirs = first.ask(first.batch), second.ask(second.batch)
            assert ours == theirs
            evaluate = Tabular(problem.space)
            first.tell([evaluate(p) for p in ours])
            second.tell([evaluate(p) for p in theirs])

    def test_other_seed_other_proposals(self, problem: Problem) -> None:
        other = dataclasses.replace(problem, seed=problem.seed + 1)
        assert trace(self.make(problem), problem) != trace(self.make(other), other)

    def test_every_generator_has_a_seed(self, problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
        """Where much fails, too: a draw without one shows when a run is resumed, and then only at times."""
        made = np.random.default_rng

        def seeded(seed: Any = None) -> np.random.Generator:
            assert seed is not None, "a generator without a seed was made"
            return made(seed)

        searcher = self.make(problem)
        evaluate = failing(Tabular(problem.space), lambda p: p.id % 2 == 0)
        monkeypatch.setattr(np.random, "default_rng", seeded)
        drive(searcher, evaluate, 120)

    def test_ids_count_up_from_zero(self, problem: Problem) -> None:
        done = drive(self.make(problem), Tabular(problem.space), 100)
        assert [r.proposal.id for r in done] == list(range(len(done)))
        assert len(done) >= min(100, self.least)

    def test_global_random_state_is_neither_read_nor_written(self, problem: Problem) -> None:
        random.seed(1)
        np.random.seed(1)
        before = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        expected = trace(self.make(problem), problem)
        after = random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index,union-attr]
        assert after == before, "the global generators moved"
        random.seed(2)
        np.random.seed(2)
        assert trace(self.make(problem), problem) == expected, "the global generators were read"

    @pytest.mark.parametrize(
        "bounds", [{"params": "0.6x"}, {"decode": "0.55x"}, {"params": "0.7x", "decode": "0.6x"}]
    )
    def test_proposals_decode_and_fit(self, bounds: dict[str, str]) -> None:
        problem = tabular_problem(bounds, (KL, PARAMS))
        if len(bounds) > self.most_bounds:
            with pytest.raises(SettingError, match="constraints: search=.* takes"):
                self.make(problem)
            return
        searcher = self.make(problem)
        done = drive(searcher, Tabular(problem.space), 120)
        for result in done:
            assert problem.space.decode(result.proposal.candidate).blocks == SHAPE.blocks
        fitting = getattr(searcher, "finalists", list)() or [r.proposal.candidate for r in done]
        probing = getattr(searcher, "probes", False) and not searcher.finished
        for candidate in () if probing else fitting:
            cost = problem.space.cost(candidate)
            assert not [c for c in problem.constraints if c.violation(cost)], (candidate, cost)
        assert len({r.proposal.candidate for r in done}) >= len(done) // 4, "hardly anything new is proposed"

    def test_asked_while_waiting(self, problem: Problem) -> None:
        searcher = self.make(problem)
        first = searcher.ask(searcher.batch)
        again = searcher.ask(searcher.batch)
        assert first and not searcher.finished
        if self.waits:
            assert again == [], "it must wait for results"
        else:
            assert [p.id for p in again] == list(range(len(first), len(first) + len(again)))

    @pytest.mark.parametrize("period", [1, 2, 3])
    def test_failures_are_told_too(self, problem: Problem, period: int) -> None:
        evaluate = failing(Tabular(problem.space), lambda p: p.id % period == 0)
        done = drive(self.make(problem), evaluate, 120)
        assert len(done) >= self.least
        assert [r.proposal.id for r in done] == list(range(len(done)))

    def test_a_batch_cut_short_is_told(self, problem: Problem) -> None:
        """Some studies can only afford, and so only tell, the first part of a batch."""
        evaluate, searcher = Tabular(problem.space), self.make(problem)
        for part in (1, 2, 3, 1):
            asked = searcher.ask(searcher.batch)
            assert asked
            searcher.tell([evaluate(p) for p in asked[:part]])
        following = searcher.ask(searcher.batch)
        assert following and following[0].id == asked[-1].id + 1

    def test_where_one_plan_fits_it_ends(self) -> None:
        """No spinning where there is no neighbour; a method that looks beyond the bound ends too."""
        problem = tabular_problem({"params": "0x"}, (KL, PARAMS))
        searcher = self.make(problem)
        done = drive(searcher, Tabular(problem.space), 1000)
        assert 1 <= len(done) < 1000 and searcher.ask(searcher.batch) == []
        fitting = {r.proposal.candidate for r in done if not r.metrics["params"]}
        assert fitting == {Candidate((0,) * len(problem.space.genes))}
        assert len(fitting) == len({r.proposal.candidate for r in done}) or getattr(searcher, "probes", False)

    def test_more_objectives_than_it_takes_are_refused(self) -> None:
        for objectives in ((KL, PARAMS, DECODE), (KL, NLL), (PARAMS,)):
            problem = tabular_problem({"params": "0.6x"}, objectives)
            if self.one_quality:
                with pytest.raises(SettingError, match="takes one quality"):
                    self.make(problem)
            else:
                assert self.make(problem).ask(8)

    def test_more_windows_than_there_are_refused(self, problem: Problem) -> None:
        with pytest.raises(SettingError, match=f"search.windows={WINDOWS + 1} .*{WINDOWS} fitness windows"):
            self.make(problem, **self.too_many_windows())


class SpaceContract:
    """What searchers and the study rely on: every gene does something, costs add up, repair keeps its promises.

    `ways`: how many results repair must be able to reach from the dense candidate at least.
    """

    ways = 4

    def make(self) -> Space:
        """The space."""
        raise NotImplementedError

    def models(self) -> Sequence[CostModel]:
        """The cost models that the space was built with."""
        raise NotImplementedError

    @pytest.fixture
    def space(self) -> Space:
        return self.make()

    @staticmethod
    def sizes(space: Space) -> list[int]:
        """Number of options of each gene."""
        return [len(g.options) for g in space.genes]  # type: ignore[union-attr]

    def candidates(self, space: Space, count: int) -> list[Candidate]:
        """Random candidates, the same ones every time."""
        rng = np.random.default_rng(5)
        rows = [[int(rng.integers(n)) for n in self.sizes(space)] for _ in range(count)]
        return [Candidate(tuple(row)) for row in rows]

    def table(self, space: Space, metric: str) -> CostTable:
        """The additive table of a metric."""
        found = space.cost_table(metric)
        assert found is not None, metric
        return found

    def test_a_gene_changes_its_sublayer_and_its_cost_only(self, space: Space) -> None:
        start = self.candidates(space, 1)[0]
        old_plan, old_cost = space.decode(start), space.cost(start)
        for index, (gene, value, size) in enumerate(
            zip(space.genes, start.indices(), self.sizes(space), strict=True)
        ):
            moved = start.with_value(index, (value + 1) % size)
            plan, cost = space.decode(moved), space.cost(moved)
            changed = [
                i
                for i, pair in enumerate(zip(plan.sublayers, old_plan.sublayers, strict=True))
                if pair[0] != pair[1]
            ]
            assert changed == [2 * gene.block + KINDS.index(gene.kind)], gene.name
            for metric in cost:
                row = self.table(space, metric).entries[index]
                assert cost[metric] - old_cost[metric] == pytest.approx(row[(value + 1) % size] - row[value])
            assert any(cost[m] != old_cost[m] for m in cost), f"{gene.name} changes no cost"

    def test_dense_is_the_dearest_and_zeros_the_cheapest(self, space: Space) -> None:
        none = Candidate((0,) * len(space.genes))
        for metric, dear in space.cost(space.dense).items():
            table = self.table(space, metric)
            assert dear == table.dense == pytest.approx(table.total(space.dense.indices()))
            assert space.cost(none)[metric] == table.smallest
            for other in self.candidates(space, 20):
                assert table.smallest <= space.cost(other)[metric] <= dear

    def test_costs_never_fall_with_the_option(self, space: Space) -> None:
        for metric in space.cost(space.dense):
            for row in self.table(space, metric).entries:
                assert list(row) == sorted(row)

    def test_json_round_trips_are_exact(self, space: Space) -> None:
        for candidate in self.candidates(space, 20):
            plan = space.decode(candidate)
            assert Candidate.from_json(candidate.to_json()) == candidate
            assert Plan.from_json(plan.to_json()) == plan
            assert Plan.from_json(plan.to_json()).key == plan.key

    def test_other_candidate_other_key(self, space: Space) -> None:
        found = {c: space.decode(c).key for c in self.candidates(space, 200)}
        assert len(set(found.values())) == len(found)

    def test_cost_is_the_plan_s_cost(self, space: Space) -> None:
        for candidate in self.candidates(space, 30):
            expected: dict[str, float] = {}
            for model in self.models():
                expected |= plan_cost(space.decode(candidate), model)
            assert dict(space.cost(candidate)) == pytest.approx(expected, rel=1e-12)

    def test_values_outside_the_options_are_refused(self, space: Space) -> None:
        for value in (-1, self.sizes(space)[0]):
            with pytest.raises(SpaceError, match=space.genes[0].name):
                space.decode(space.dense.with_value(0, value))
        with pytest.raises(SpaceError, match="genes"):
            space.decode(Candidate(space.dense.values[:-1]))

    def bounds(self, space: Space) -> list[dict[str, str]]:
        """Single and joint bounds that can be met."""
        metrics = sorted(space.cost(space.dense))
        single = [{m: "0.6x"} for m in metrics]
        return [*single, dict.fromkeys(metrics, "0.7x"), {metrics[0]: "0.4x", metrics[-1]: "0.8x"}]

    def test_repair_meets_every_constraint_and_lowers_no_more_than_needed(self, space: Space) -> None:
        dense = space.cost(space.dense)
        for bounds in self.bounds(space):
            constraints = [parse_constraint(m, t, dense) for m, t in bounds.items()]
            for number, candidate in enumerate([space.dense, *self.candidates(space, 12)]):
                fixed = space.repair(candidate, constraints, np.random.default_rng(number))
                assert fixed == space.repair(candidate, constraints, np.random.default_rng(number))
                assert not any(c.violation(space.cost(fixed)) for c in constraints), (bounds, candidate)
                pairs = list(zip(fixed.indices(), candidate.indices(), strict=True))
                assert all(new <= old for new, old in pairs), "repair raised a gene"
                for gene, (new, old) in enumerate(pairs):
                    raised = space.cost(fixed.with_value(gene, min(new + 1, old)))
                    assert new == old or any(c.violation(raised) for c in constraints), "room was left"

    def test_repair_takes_different_ways(self, space: Space) -> None:
        dense = space.cost(space.dense)
        limits = [parse_constraint(m, text, dense) for m, text in self.bounds(space)[0].items()]
        found = {space.repair(space.dense, limits, np.random.default_rng(i)) for i in range(8)}
        assert len(found) > self.ways

    def test_what_cannot_be_met_is_refused_with_the_smallest_value(self, space: Space) -> None:
        for metric in space.cost(space.dense):
            smallest = self.table(space, metric).smallest
            if smallest > 0:
                limit = parse_constraint(metric, smallest / 2, space.cost(space.dense))
                with pytest.raises(InfeasibleError) as caught:
                    space.repair(space.dense, [limit], np.random.default_rng(0))
                assert f"constraints.{metric}=" in str(caught.value)
                assert f"the smallest feasible value is {smallest:.6g}" in str(caught.value)
