"""Genes, candidates and plans as plain data."""

from __future__ import annotations

import pytest

from autoprune.errors import SpaceError
from autoprune.space import ArrayGene, Candidate, CostTable, OptionGene, Plan, SublayerPlan, digest


def test_the_key_of_a_plan_never_changes() -> None:
    """Ledgers, checkpoints and leaderboards of older versions name plans by it."""
    plan = Plan.of([(2, 64), (0, 0)])
    assert plan.to_json() == (
        '{"blocks":[{"attention":{"kv_groups":2},"ffn":{"width":64}},{"attention":{"kv_groups":0},"ffn":{"width":0}}]}'
    )
    assert plan.key == "e94a27af8149"
    assert digest("a", 1, [1.5]) == "64d4a1897a5984a8f5d5434f4df1b6c64f712521832bcee52a1caf7e1553d02a"


def test_equal_plans_have_equal_keys_whatever_the_order_of_settings() -> None:
    one = SublayerPlan.of("ffn", width=3, sparsity=0.5)
    assert one == SublayerPlan.of("ffn", sparsity=0.5, width=3)
    attention = SublayerPlan.of("attention", kv_groups=1)
    plan = Plan((attention, one))
    assert Plan.from_json(plan.to_json()) == plan
    assert Plan((attention, SublayerPlan.of("ffn", width=3, sparsity=0.6))).key != plan.key


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"blocks": [{"ffn": {}}]}', '{"blocks": 3}', "null"])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(SpaceError, match="not a plan"):
        Plan.from_json(text)


def test_array_values_come_back_exactly() -> None:
    candidate = Candidate((1, (0.1, 1 / 3, 2.0), 0))
    assert Candidate.from_json(candidate.to_json()) == candidate
    with pytest.raises(SpaceError, match="array genes"):
        candidate.indices()


def test_with_value_changes_one_gene() -> None:
    assert Candidate((1, 2, 3)).with_value(1, 0) == Candidate((1, 0, 3))
    assert Candidate((1, 2, 3)).with_value(2, 0) == Candidate((1, 2, 0))


def test_only_zero_width_or_no_groups_is_gone() -> None:
    assert SublayerPlan.of("ffn", width=0).gone and SublayerPlan.of("attention", kv_groups=0).gone
    assert not SublayerPlan.of("ffn", width=1, sparsity=0).gone


def test_an_unknown_setting_is_named_with_those_there_are() -> None:
    with pytest.raises(SpaceError, match="ffn has no setting 'heads': it has \\['width'\\]"):
        SublayerPlan.of("ffn", width=1).get("heads")


@pytest.mark.parametrize("options", [(), (1, 0), (1, 1)])
def test_options_must_rise(options: tuple[int, ...]) -> None:
    with pytest.raises(SpaceError, match="block2.ffn.width"):
        OptionGene(2, "ffn", "width", options)


def test_genes_have_readable_names() -> None:
    assert ArrayGene(1, "attention", "merge", (2,), 0.0, 1.0).name == "block1.attention.merge"


def test_a_cost_table_adds_up() -> None:
    table = CostTable("ms", 1.0, ((0.0, 2.0), (0.5, 4.0, 8.0)))
    assert (table.smallest, table.dense, table.total((1, 1))) == (1.5, 11.0, 7.0)
