"""The structured space: KV groups and FFN width of every block, zero and full included."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from autoprune.errors import SettingError
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, CostModel, Plan
from autoprune.sublayers import SublayerSpace
from search_spaces.structured import Structured
from tests.contracts import SpaceContract
from tests.tabular import SHAPE, StepCosts, structured_space

BIASED = dataclasses.replace(
    SHAPE, norm_params=32, attention_bias=True, ffn_bias=True, gated=False, tied=False
)


class TestStructured(SpaceContract):
    def make(self) -> SublayerSpace:
        return structured_space()

    def models(self) -> Sequence[CostModel]:
        return (AnalyticCosts(SHAPE), StepCosts())


class TestStructuredWithBiases(SpaceContract):
    def make(self) -> SublayerSpace:
        return structured_space(BIASED)

    def models(self) -> Sequence[CostModel]:
        return (AnalyticCosts(BIASED), StepCosts())


def test_genes_stand_in_depth_order() -> None:
    names = [g.name for g in structured_space().genes]
    assert names[:4] == [
        "block0.attention.kv_groups",
        "block0.ffn.width",
        "block1.attention.kv_groups",
        "block1.ffn.width",
    ]
    assert len(names) == 2 * SHAPE.blocks


def test_the_last_options_are_the_dense_model() -> None:
    space = structured_space()
    assert space.decode(space.dense) == Plan.of([(SHAPE.kv_groups, SHAPE.ffn)] * SHAPE.blocks)


@pytest.mark.parametrize("shape", [SHAPE, BIASED])
@pytest.mark.parametrize("gene", range(2 * SHAPE.blocks))
def test_zero_removes_the_sublayer_with_its_norm(shape: object, gene: int) -> None:
    space = structured_space(shape)  # type: ignore[arg-type]
    candidate = space.dense.with_value(gene, 0)
    assert space.decode(candidate).sublayers[gene].gone
    table = space.cost_table("params")
    assert table is not None and table.entries[gene][0] == 0.0
    one, two = table.entries[gene][1:3]
    fixed = one - (two - one)  # what does not grow with the width: norm and output bias
    assert fixed == (64 if shape is BIASED else 0)


def test_everything_removed_costs_what_is_outside_the_blocks() -> None:
    space = structured_space(BIASED)
    cost = space.cost(Candidate((0,) * len(space.genes)))
    assert cost["params"] == 0 == cost["kv_bytes"]
    assert cost["params_total"] == 2 * 100 * 32 + 32
    assert cost["decode"] == 0.7


@pytest.mark.parametrize("ffn", [512, 256, 11008, 1024, 8960, 600, 17])
def test_widths_rise_from_zero_to_full_in_enough_steps(ffn: int) -> None:
    widths = Structured().options(dataclasses.replace(SHAPE, ffn=ffn))["width"]
    assert widths[0] == 0 and widths[-1] == ffn
    assert list(widths) == sorted(set(widths)) and len(widths) >= 8
    steps = {b - a for a, b in zip(widths[:-2], widths[1:-1], strict=True)}
    assert len(steps) == 1, "all but the last step are equal"


def test_few_neurons_are_all_options() -> None:
    assert Structured().options(dataclasses.replace(SHAPE, ffn=3))["width"] == (0, 1, 2, 3)


def test_settings_choose_the_grid() -> None:
    shape = dataclasses.replace(SHAPE, ffn=512)
    assert Structured(ffn_options=3).options(shape)["width"] == (0, 256, 512)
    assert Structured(ffn_multiple=200).options(shape)["width"] == (0, 200, 400, 512)
    assert len(Structured(ffn_options=30).options(shape)["width"]) >= 30
    assert Structured().options(shape)["kv_groups"] == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ffn_options": 1}, "space.structured.ffn_options=1"),
        ({"ffn_multiple": 0}, "space.structured.ffn_multiple=0"),
    ],
)
def test_mistakes_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Structured(**settings)


def test_a_grid_of_two_options_ends() -> None:
    widths = Structured(ffn_options=2).options(dataclasses.replace(SHAPE, ffn=48))["width"]
    assert widths[0] == 0 and widths[-1] == 48
