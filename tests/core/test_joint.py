"""Several genes on one sublayer: decoding, costs that multiply, repair and tables that hold near a candidate."""

from __future__ import annotations

import numpy as np
import pytest

from autoprune.errors import InfeasibleError, SettingError
from autoprune.objective import Constraint, parse_constraint
from autoprune.space import Candidate, plan_cost
from autoprune.sublayers import SublayerSpace, join, joint_options
from autoprune.uniform import uniform_candidates
from search_spaces.structured import Structured
from tests.joint import KEPT, Shares, joint_space
from tests.tabular import SHAPE


@pytest.fixture
def space() -> SublayerSpace:
    return joint_space()


def candidates(space: SublayerSpace, count: int) -> list[Candidate]:
    rng = np.random.default_rng(1)
    sizes = [len(g.options) for g in space.genes]  # type: ignore[union-attr]
    return [Candidate(tuple(int(rng.integers(n)) for n in sizes)) for _ in range(count)]


def test_genes_stand_in_depth_order_and_each_changes_its_setting_only(space: SublayerSpace) -> None:
    names = [g.name for g in space.genes]
    assert names[:4] == [
        *("block0.attention.kv_groups", "block0.attention.share"),
        *("block0.ffn.width", "block0.ffn.share"),
    ]
    start = Candidate(tuple(2 for _ in names))
    for index, gene in enumerate(space.genes):
        plans = [space.decode(c) for c in (start, start.with_value(index, 3))]
        before, after = (dict(p.at(gene.block, gene.kind).settings) for p in plans)
        assert {k for k in before if before[k] != after[k]} == {gene.setting}
        assert sum(a != b for a, b in zip(*(p.sublayers for p in plans), strict=True)) == 1


def test_nothing_else_matters_of_a_sublayer_that_is_gone(space: SublayerSpace) -> None:
    gone = space.dense.with_value(0, 0)
    assert {space.decode(gone.with_value(1, i)).key for i in range(len(KEPT))} == {space.decode(gone).key}
    assert len({space.cost(gone.with_value(1, i))["weights"] for i in range(len(KEPT))}) == 1
    assert space.decode(gone).at(0, "attention").gone


def test_cost_is_the_plan_s_cost_and_no_table_adds_up_to_it(space: SublayerSpace) -> None:
    for candidate in candidates(space, 40):
        expected: dict[str, float] = {}
        for model in space.costs:
            expected |= plan_cost(space.decode(candidate), model)
        assert dict(space.cost(candidate)) == pytest.approx(expected, rel=1e-12)
    assert space.cost_table("weights") is None


def test_a_local_table_is_exact_for_every_single_change(space: SublayerSpace) -> None:
    around = candidates(space, 3)[2]
    table = space.local_table("weights", around)
    assert table.total(around.indices()) == pytest.approx(space.cost(around)["weights"])
    for gene, row in enumerate(table.entries):
        for option in range(len(row)):
            changed = around.with_value(gene, option)
            assert table.total(changed.indices()) == pytest.approx(space.cost(changed)["weights"])
    far = space.local_table("weights", space.dense)
    assert far.entries != table.entries


@pytest.mark.parametrize(
    "bounds", [{"weights": "0.5x"}, {"weights": "0.2x"}, {"weights": "0.6x", "params": "0.7x"}]
)
def test_repair_meets_every_bound_and_leaves_little_room(
    space: SublayerSpace, bounds: dict[str, str]
) -> None:
    dense = space.cost(space.dense)
    limits = [parse_constraint(m, text, dense) for m, text in bounds.items()]
    found = set()
    for seed in range(12):
        fixed = space.repair(space.dense, limits, np.random.default_rng(seed))
        assert fixed == space.repair(space.dense, limits, np.random.default_rng(seed))
        assert not any(c.violation(space.cost(fixed)) for c in limits)
        for gene, value in enumerate(fixed.indices()):
            if value < space.dense.indices()[gene]:
                raised = space.cost(fixed.with_value(gene, value + 1))
                assert any(c.violation(raised) for c in limits)
        found.add(fixed)
    assert len(found) > 8
    fits = space.repair(space.dense, limits, np.random.default_rng(0))
    assert space.repair(fits, limits, np.random.default_rng(5)) == fits


def test_a_bound_that_nothing_meets_names_the_least(space: SublayerSpace) -> None:
    with pytest.raises(InfeasibleError, match="weights=1.0 cannot be met: the smallest feasible value is 10"):
        space.repair(space.dense, [Constraint("weights", 1.0)], np.random.default_rng(0))


def test_uniform_plans_of_several_genes(space: SublayerSpace) -> None:
    for candidate in (found := uniform_candidates(space, 0.4, "weights")):
        assert space.cost(candidate)["weights"] <= 0.4 * space.cost(space.dense)["weights"]
    assert found


def test_two_groups_that_set_the_same_are_refused() -> None:
    with pytest.raises(SettingError, match="space: two groups set block0.attention.kv_groups"):
        join([Structured(), Structured()], SHAPE, [])


def test_options_of_what_no_group_changes_are_the_full_ones() -> None:
    assert joint_options([Shares()], SHAPE) == {"kv_groups": (4,), "width": (64,), "share": KEPT}
