"""The space of prompt tokens: options, costs of whole plans, and whom it fits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from autoprune.errors import InfeasibleError, SettingError
from autoprune.kv_policy import caches_less, decodes_otherwise
from autoprune.objective import Constraint, parse_constraint
from autoprune.run.finals import baseline_entries
from autoprune.shape import AnalyticCosts, kept_count
from autoprune.space import KINDS, Candidate, Plan, plan_cost, token_keep
from autoprune.sublayers import SpacePart, SublayerSpace, join
from search_spaces.prefill_tokens import FOR_GOOD, SETTING, PrefillTokens
from search_spaces.structured import Structured
from tests.tabular import SHAPE

COSTS = AnalyticCosts(SHAPE, 64)


def space(structured: bool = False, returning: bool = True) -> SublayerSpace:
    """Of SHAPE."""
    tokens = PrefillTokens(returning=returning)
    parts: list[SpacePart] = [Structured(), tokens] if structured else [tokens]
    found = join(parts, SHAPE, [COSTS])
    assert isinstance(found, SublayerSpace)
    return found


def candidates(found: SublayerSpace, count: int = 20) -> list[Candidate]:
    """Random ones, the same every time."""
    rng = np.random.default_rng(1)
    sizes = [len(g.options) for g in found.genes]  # type: ignore[union-attr]
    return [Candidate(tuple(int(rng.integers(n)) for n in sizes)) for _ in range(count)]


@pytest.mark.parametrize(("returning", "costs"), [(True, {"flops"}), (False, {"flops", "kv_bytes"})])
def test_a_gene_changes_its_attention_and_these_costs_only(returning: bool, costs: set[str]) -> None:
    found, start = space(returning=returning), Candidate((4,) * SHAPE.blocks)
    for at, gene in enumerate(found.genes):
        moved = start.with_value(at, 2)
        plan, old = found.decode(moved), found.decode(start)
        changed = [i for i, (a, b) in enumerate(zip(plan.sublayers, old.sublayers, strict=True)) if a != b]
        assert changed == [2 * gene.block + KINDS.index("attention")]
        last = gene.block == SHAPE.blocks - 1  # nothing follows its attention but its FFN
        wanted = costs - {"kv_bytes"} if last else costs
        assert {m for m, v in found.cost(moved).items() if v != found.cost(start)[m]} == wanted
        assert found.cost(moved)["flops"] < found.cost(start)["flops"]


def test_the_last_option_is_dense() -> None:
    found = space()
    assert {token_keep(found.decode(found.dense).at(b, "attention")) for b in range(SHAPE.blocks)} == {None}
    plain = join([Structured()], SHAPE, [COSTS])
    assert dict(found.cost(found.dense)) == dict(plain.cost(plain.dense))
    assert dict(found.decode(Candidate((0,) * SHAPE.blocks)).at(2, "attention").settings)[SETTING] == 10


def test_flops_by_hand() -> None:
    """A block's attention reads what came in, its FFN what is left."""
    found, tokens = space(), 64
    total = COSTS.base["flops"]
    for keep in (50, 100, 100, 100):
        width, keys = SHAPE.heads * SHAPE.head_dim, SHAPE.kv_groups * SHAPE.head_dim
        total += 4 * tokens * SHAPE.hidden * (width + keys) + 4 * tokens**2 * width
        tokens = kept_count(tokens, keep, 0)
        total += 2 * tokens * 3 * SHAPE.hidden * SHAPE.ffn
    assert found.cost(Candidate((4, 9, 9, 9)))["flops"] == total and tokens == 32


@pytest.mark.parametrize("returning", [False, True])
@pytest.mark.parametrize("structured", [False, True])
def test_costs_are_those_of_the_plan_and_plans_round_trip(structured: bool, returning: bool) -> None:
    found = space(structured, returning)
    for candidate in [found.dense, *candidates(found)]:
        plan = found.decode(candidate)
        assert found.cost(candidate) == pytest.approx(plan_cost(plan, COSTS))
        assert Plan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(("returning", "metric"), [(True, "flops"), (False, "flops"), (False, "kv_bytes")])
def test_tables_are_local(returning: bool, metric: str) -> None:
    found = space(returning=returning)
    assert found.cost_table(metric) is None and found.cost_table("params") is not None
    for around in candidates(found, 4):
        table = found.local_table(metric, around)
        for gene in range(len(found.genes)):
            moved = around.with_value(gene, 7)
            assert table.total(moved.indices()) == pytest.approx(found.cost(moved)[metric])


def test_kv_bytes_by_hand() -> None:
    """For good: a block's cache holds what came in."""
    found, one = space(returning=False), 2 * SHAPE.kv_groups * SHAPE.head_dim * SHAPE.bytes_per_value
    assert found.cost(Candidate((4, 9, 1, 9)))["kv_bytes"] == one * (64 + 32 + 32 + 7)
    whole = one * 64 * SHAPE.blocks
    assert found.cost(found.dense)["kv_bytes"] == whole == space().cost(Candidate((4,) * 4))["kv_bytes"]


@pytest.mark.parametrize("structured", [False, True])
def test_repair_meets_bounds(structured: bool) -> None:
    found, rng = space(structured), np.random.default_rng(3)
    bounds = [parse_constraint("flops", "0.6x", found.cost(found.dense))]
    reached = {found.repair(c, bounds, rng) for c in [found.dense] * 4 + candidates(found, 6)}
    assert len(reached) > 4
    assert not any(b.violation(found.cost(c)) for c in reached for b in bounds)
    with pytest.raises(InfeasibleError):
        found.repair(found.dense, [Constraint("flops", 5.0)], rng)


def test_an_attention_that_is_gone_drops_nothing() -> None:
    found = space(structured=True)
    gone = found.decode(found.dense.with_value(0, 0)).at(0, "attention")
    assert gone.gone and token_keep(gone) is None and dict(gone.settings)[SETTING] == 0


def test_uniform_plans_are_of_flops() -> None:
    for finalist in baseline_entries(space(), ["uniform"], [0.7])["uniform@0.7"]:
        assert 0.6 < finalist.costs["flops"] / space().cost(space().dense)["flops"] <= 0.7


@pytest.mark.parametrize("keep", [[], [0, 50], [50, 101], [60, 40], [50, 50], [0.5]])
def test_bad_shares_are_told_in_one_line(keep: Any) -> None:
    with pytest.raises(
        SettingError, match=r"space.prefill_tokens.keep=\[.*\] must be whole numbers"
    ) as caught:
        PrefillTokens(keep)
    assert "\n" not in str(caught.value)


def test_returning_is_yes_or_no() -> None:
    with pytest.raises(SettingError, match="space.prefill_tokens.returning='no' must be true or false"):
        PrefillTokens(returning="no")  # type: ignore[arg-type]


def test_a_family_that_reads_no_prompts_is_refused() -> None:
    bert = dataclasses.replace(SHAPE, model_type="bert", task="sentences")
    with pytest.raises(
        SettingError, match=r"space=\[prefill_tokens\] does not fit family 'bert'.*space=\[tokens\]"
    ):
        join([PrefillTokens()], bert, [COSTS])


def test_it_shows_after_a_prompt_only() -> None:
    for setting in (SETTING, FOR_GOOD):
        assert decodes_otherwise({setting}) and not caches_less({setting})
    assert not decodes_otherwise(Structured().options(SHAPE))
