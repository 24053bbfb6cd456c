"""EMO: each sub-network by itself, the fronts joined exactly by summed impairment, then the whole model."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import Result
from autoprune.searchers.emo import EMO, join
from autoprune.searchers.part import divided
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate
from tests.contracts import SearcherContract
from tests.searchers.methods import make_emo, make_nsga2
from tests.searchers.test_nsga2 import area
from tests.tabular import KL, PARAMS, SHAPE, Tabular, drive, failing, structured_space, tabular_problem


class TestEMO(SearcherContract):
    one_quality = True

    def make(self, problem: Problem, **settings: Any) -> EMO:
        return make_emo(problem, **settings)

    @pytest.mark.parametrize(
        "bounds", [{"params": "0.6x"}, {"decode": "0.55x"}, {"params": "0.7x", "decode": "0.6x"}]
    )
    def test_proposals_decode_and_fit(self, bounds: dict[str, str]) -> None:
        """It probes: sub-networks alone are beyond the bounds, what is searched after joining them is not."""
        problem = tabular_problem(bounds, (KL, PARAMS))
        searcher = self.make(problem)
        done = drive(searcher, Tabular(problem.space), 120)
        late = done[len(parts_stage(searcher, done)) :]
        costs = [problem.space.cost(r.proposal.candidate) for r in late]
        assert len(late) > 80 and not [
            cost for cost in costs if any(c.violation(cost) for c in problem.constraints)
        ]
        assert len({r.proposal.candidate for r in done}) >= len(done) // 4


def parts_stage(searcher: EMO, done: list[Result]) -> list[Result]:
    """What was evaluated before any plan was joined."""
    return [r for r in done if r.proposal.fidelity == searcher._coarse]


def test_a_part_s_genes_never_touch_the_others() -> None:
    problem = tabular_problem({}, (KL, PARAMS))
    searcher = make_emo(problem, part_generations=6)
    done = parts_stage(searcher, drive(searcher, Tabular(problem.space), 60))
    dense, changed = problem.space.dense.values, set()
    for result in done:
        values = result.proposal.candidate.values
        moved = {g for g, v in enumerate(values) if v != dense[g]}
        owners = [i for i, part in enumerate(searcher._parts) if moved <= set(part.indices)]
        assert owners, moved
        changed |= moved
    assert len(done) > 40 and changed == set(range(len(dense)))


def test_blocks_are_divided_in_order_and_evenly() -> None:
    space = structured_space(dataclasses.replace(SHAPE, blocks=7))
    parts = divided(space, 3)
    assert [i for part in parts for i in part.indices] == list(range(len(space.genes)))
    assert [len(part.genes) for part in parts] == [6, 4, 4]
    part = parts[1]
    smaller = part.dense.with_value(0, 0)
    assert part.within(part.whole(smaller)) == smaller and part.decode(smaller) == space.decode(
        part.whole(smaller)
    )
    table = part.cost_table("params")
    assert table is not None
    assert table.total(smaller.indices()) == pytest.approx(space.cost(part.whole(smaller))["params"])
    assert part.cost(smaller) == space.cost(part.whole(smaller)) and part.digest() != parts[0].digest()


def test_joined_plans_have_the_least_summed_impairment() -> None:
    rng = np.random.default_rng(0)
    fronts = [
        [(float(c), float(v), Candidate((i,))) for i, (c, v) in enumerate(zip(*rows, strict=True))]
        for rows in (
            (np.sort(rng.choice(40, 5, replace=False)), -np.sort(-rng.exponential(1, 5))[::-1])
            for _ in range(4)
        )
    ]
    targets = np.linspace(30.0, 160.0, 9)
    found = join(fronts, 10.0, "params", targets)
    brute = []
    for target in targets:
        sums = [
            (sum(p[1] for p in picks), 10.0 + sum(p[0] for p in picks))
            for picks in itertools.product(*fronts)
        ]
        fitting = [value for value, cost in sums if cost <= target]
        brute += [min(fitting)] if fitting else []
    values = [sum(front[c.indices()[0]][1] for front, c in zip(fronts, p, strict=True)) for p in found]
    assert len(brute) > 4 and values == pytest.approx(brute)


def test_the_whole_model_s_evolution_starts_from_the_joined_plans() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    searcher = make_emo(problem, population=12, part_population=8, part_generations=4)
    evaluate = Tabular(problem.space)
    while searcher._whole is None:
        searcher.tell([evaluate(p) for p in searcher.ask(searcher.batch)])
        if not searcher._pending and searcher._rounds == 4:
            break
    joined = searcher.joined()
    first = searcher.ask(searcher.batch)
    assert len(joined) >= 3 and set(joined) <= {p.candidate for p in first}
    bound = problem.constraints[0].bound
    costs = [problem.space.cost(c)["params"] for c in joined]
    assert max(costs) <= bound * (1 + 1e-9) and max(costs) > 0.9 * bound and min(costs) < 0.7 * bound
    assert all(p.fidelity.count == 2 for p in first), "joined plans are scored on all windows"


def test_everything_failing_leaves_the_seeds_to_refine() -> None:
    problem = tabular_problem({"params": "0.6x"}, (KL, PARAMS))
    searcher = make_emo(problem)
    done = drive(searcher, failing(Tabular(problem.space), lambda p: True), 60)
    late = done[len(parts_stage(searcher, done)) :]
    assert late and not any(
        problem.constraints[0].violation(problem.space.cost(r.proposal.candidate)) for r in late
    )


def test_nsga2_s_hypervolume_with_half_of_its_evaluations() -> None:
    """Tokens count, so the parts' single windows count too: 12 blocks, nsga2's 960 evaluations of 4 windows."""
    space = structured_space(dataclasses.replace(SHAPE, blocks=12))
    dense = space.cost(space.dense)["params"]
    for seed in (0, 1):
        problem, evaluate = tabular_problem({}, (KL, PARAMS), seed, space), Tabular(space, seed)
        whole = area(drive(make_nsga2(problem, population=64, windows=4), evaluate, 960), dense)
        settings = {"parts": 4, "part_population": 16, "part_generations": 12, "population": 64, "windows": 4}
        done = drive(make_emo(problem, **settings), evaluate, 769 + 128)
        full = [r for r in done if r.proposal.fidelity.count == 4]
        spent = sum(r.proposal.fidelity.count for r in done)
        assert len(full) <= 480 and spent <= 480 * 4
        assert area(full, dense) >= 0.95 * whole


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"parts": 5}, "search.parts=5 is not between 1 and the 4 blocks"),
        ({"part_generations": 0}, "search.part_generations=0 must be at least 1"),
        ({"part_windows": 99}, "search.part_windows=99"),
        ({"part_population": 2}, "search.part_population=2"),
        ({"smallest": 1.5}, "search.smallest=1.5"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        make_emo(tabular_problem({}, (KL, PARAMS)), **settings)
