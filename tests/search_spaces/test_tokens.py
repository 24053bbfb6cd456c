"""The token space: what a block costs depends on what earlier blocks left over, and everything knows it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from autoprune.errors import InfeasibleError, SettingError
from autoprune.objective import Constraint, parse_constraint
from autoprune.run.finals import baseline_entries
from autoprune.shape import AnalyticCosts, Shape, kept_count
from autoprune.space import Candidate, plan_cost, token_keep
from autoprune.sublayers import SublayerSpace, join
from search_spaces.structured import Structured
from search_spaces.tokens import Tokens
from tests.tabular import SHAPE

VIT = dataclasses.replace(
    SHAPE,
    model_type="vit",
    gated=False,
    task="images",
    tokens=65,
    specials=1,
    outside_params=500,
    outside_flops=7,
)


def space(shape: Shape = VIT, rule: str = "merge", structured: bool = False) -> SublayerSpace:
    parts = [Structured(), Tokens(rule)] if structured else [Tokens(rule)]
    return join(parts, shape, [AnalyticCosts(shape, 65)])  # type: ignore[arg-type]


def candidates(found: SublayerSpace, count: int) -> list[Candidate]:
    rng = np.random.default_rng(1)
    sizes = [len(g.options) for g in found.genes]  # type: ignore[union-attr]
    return [Candidate(tuple(int(rng.integers(n)) for n in sizes)) for _ in range(count)]


@pytest.mark.parametrize("structured", [False, True])
def test_costs_are_those_of_the_plan(structured: bool) -> None:
    found = space(structured=structured)
    for candidate in [found.dense, *candidates(found, 20)]:
        wanted = plan_cost(found.decode(candidate), AnalyticCosts(VIT, 65))
        assert found.cost(candidate) == pytest.approx(wanted)


def test_flops_by_hand() -> None:
    """Of each block's tokens: products with weights and attention's own before the drop, the FFN's after it."""
    found = space(rule="cls")
    candidate = Candidate((4,) + tuple(len(g.options) - 1 for g in found.genes[1:]))  # type: ignore[union-attr]
    total, tokens = 7.0, 65
    for block in range(VIT.blocks):
        width = VIT.heads * VIT.head_dim
        keys = VIT.kv_groups * VIT.head_dim
        total += 2 * tokens * 2 * VIT.hidden * (width + keys) + 4 * tokens**2 * width
        tokens = kept_count(tokens, 50, 1) if block == 0 else tokens
        total += 2 * tokens * 2 * VIT.hidden * VIT.ffn
    assert found.cost(candidate)["flops"] == total and tokens == 33


def test_a_drop_is_cheaper_the_earlier_it_is() -> None:
    found = space()
    costs = [found.cost(found.dense.with_value(gene, 1))["flops"] for gene in range(VIT.blocks)]
    assert costs == sorted(costs) and costs[0] < costs[-1]
    assert costs[0] < found.cost(found.dense)["flops"]


def test_tables() -> None:
    found = space()
    assert found.cost_table("flops") is None and found.cost_table("params") is not None
    for around in candidates(found, 5):
        table = found.local_table("flops", around)
        assert table.total(around.indices()) == pytest.approx(found.cost(around)["flops"])
        for gene in range(len(found.genes)):
            for option in range(10):
                moved = around.with_value(gene, option)
                assert table.total(moved.indices()) == pytest.approx(found.cost(moved)["flops"])


@pytest.mark.parametrize("structured", [False, True])
def test_repair_meets_bounds(structured: bool) -> None:
    found, rng = space(structured=structured), np.random.default_rng(3)
    dense = found.cost(found.dense)
    bounds = [parse_constraint("flops", "0.6x", dense)]
    bounds += [parse_constraint("params", "0.8x", dense)] if structured else []
    reached = {found.repair(c, bounds, rng) for c in [found.dense] * 4 + candidates(found, 6)}
    assert len(reached) > 4
    for candidate in reached:
        assert not any(b.violation(found.cost(candidate)) for b in bounds)
    with pytest.raises(InfeasibleError):
        found.repair(found.dense, [Constraint("flops", 5.0)], rng)


def test_an_attention_that_is_gone_drops_nothing() -> None:
    found = space(structured=True)
    candidate = Candidate((0, 0) + found.dense.values[2:])
    plan = found.decode(candidate)
    assert plan.sublayers[0].gone and token_keep(plan.sublayers[0]) is None
    assert dict(plan.sublayers[0].settings)["keep_merge"] == 0
    other = found.decode(candidate.with_value(1, 3))
    assert plan == other and plan.key == other.key


def test_uniform_plans_are_of_flops_where_parameters_stay() -> None:
    found = baseline_entries(space(), ["uniform"], [0.7])["uniform@0.7"]
    for finalist in found:
        assert 0.6 < finalist.costs["flops"] / space().cost(space().dense)["flops"] <= 0.7
    narrower = baseline_entries(space(structured=True), ["uniform"], [0.7])["uniform@0.7"]
    assert narrower[0].costs["params"] < found[0].costs["params"]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"rule": "clss"}, "space.tokens.rule=clss is unknown; did you mean 'cls'"),
        ({"keep": [0, 50]}, r"space.tokens.keep=\[0, 50\] must be whole numbers from 1 to 100"),
        ({"keep": []}, r"space.tokens.keep=\[\] must be whole numbers.* at least one"),
        ({"keep": [60, 40]}, r"space.tokens.keep=\[60, 40\] must be .* that rise"),
        ({"keep": [0.5]}, r"space.tokens.keep=\[0.5\] must be whole numbers"),
    ],
)
def test_wrong_settings_are_one_line(settings: dict[str, object], line: str) -> None:
    with pytest.raises(SettingError, match=line):
        Tokens(**settings)  # type: ignore[arg-type]


def test_a_family_that_keeps_its_tokens_is_refused() -> None:
    with pytest.raises(SettingError, match=r"space=\[tokens\] does not fit family 'llama'"):
        Tokens().genes(dataclasses.replace(SHAPE, model_type="llama"))
