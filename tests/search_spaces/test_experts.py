"""The space of experts: how many a block keeps, how many a token uses, and never more used than kept."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import parse_constraint
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Candidate, CostModel, OptionGene, Plan, SublayerPlan
from autoprune.sublayers import SublayerSpace, join
from search_spaces.experts import Experts
from search_spaces.structured import Structured
from tests.contracts import SpaceContract
from tests.tabular import SHAPE

MOE = dataclasses.replace(SHAPE, model_type="mixtral", experts=6, experts_per_token=2)
WIDE = dataclasses.replace(MOE, ffn=512)


class KvGroups:
    """The attention half of the structured space."""

    def options(self, shape: Shape) -> dict[str, tuple[int, ...]]:
        return {"kv_groups": Structured().options(shape)["kv_groups"]}

    def genes(self, shape: Shape) -> list[OptionGene]:
        return [g for g in Structured().genes(shape) if g.kind == "attention"]


class TestExperts(SpaceContract):
    def make(self) -> SublayerSpace:
        return join([KvGroups(), Experts(per_token=[2])], WIDE, self.models())

    def models(self) -> Sequence[CostModel]:
        return (AnalyticCosts(WIDE),)


def space(*parts: Experts | Structured) -> SublayerSpace:
    return join(parts or [Experts()], MOE, [AnalyticCosts(MOE)])


def test_two_genes_a_block_and_the_last_options_are_the_dense_model() -> None:
    found = space()
    assert [g.name for g in found.genes[:2]] == ["block0.ffn.experts", "block0.ffn.experts_per_token"]
    assert [g.options for g in found.genes[:2]] == [(0, 1, 2, 3, 4, 5, 6), (1, 2)]
    sublayer = found.decode(found.dense).at(3, "ffn")
    assert sublayer == SublayerPlan.of("ffn", width=MOE.ffn, experts=6, experts_per_token=2)
    assert found.cost(found.dense)["flops"] == AnalyticCosts(MOE).base["flops"] + sum(
        AnalyticCosts(MOE).sublayer(0, s)["flops"] for s in Plan.of([(MOE.kv_groups, MOE.ffn)] * 4).sublayers
    )


def test_options_are_those_that_are_asked_for() -> None:
    assert Experts([3, 4], [2]).options(MOE) == {"experts": (0, 3, 4, 6)}
    assert Experts([6], [1]).options(MOE) == {"experts": (0, 6), "experts_per_token": (1, 2)}
    assert Experts(per_token=[2]).options(MOE) == {"experts": (0, 2, 3, 4, 5, 6)}


def test_no_token_uses_more_experts_than_are_kept() -> None:
    found = space()
    one = found.dense.with_value(0, 1)
    assert found.decode(one).at(0, "ffn") == SublayerPlan.of(
        "ffn", width=MOE.ffn, experts=1, experts_per_token=1
    )
    assert found.decode(one) == found.decode(one.with_value(1, 0))
    assert found.cost(one) == found.cost(one.with_value(1, 0))


def test_without_experts_the_ffn_is_gone() -> None:
    found = space()
    gone = found.decode(found.dense.with_value(0, 0)).at(0, "ffn")
    assert gone.gone and set(dict(gone.settings).values()) == {0}


def test_expert_memory_is_a_bound_of_its_own() -> None:
    found = space(Structured(), Experts())
    bound = parse_constraint("expert_bytes", "0.5x", found.cost(found.dense))
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = tuple(int(rng.integers(len(g.options))) for g in found.genes)  # type: ignore[union-attr]
        repaired = found.repair(Candidate(values), [bound], rng)
        cost, plan = found.cost(repaired), found.decode(repaired)
        held = sum(int(s.get("experts")) * int(s.get("width")) for s in plan.sublayers if s.kind == "ffn")
        assert cost["expert_bytes"] == 3 * MOE.hidden * held * MOE.bytes_per_value <= bound.bound


def test_joined_with_widths_both_count() -> None:
    found = space(Structured(), Experts(per_token=[2]))
    assert found.cost_table("params") is None
    names = [g.name for g in found.genes[:3]]
    assert names == ["block0.attention.kv_groups", "block0.ffn.width", "block0.ffn.experts"]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (
            Experts([4, 7]),
            "space.experts.counts=[4, 7]: 7 is not allowed; 0, or 1 (experts per token) to 6",
        ),
        (Experts([1], [2]), "space.experts.counts=[1]: 1 is not allowed; 0, or 2 (experts per token) to 6"),
        (Experts(None, [3]), "space.experts.per_token=[3]: 3 is not allowed; 1 to 2, as many as a token"),
        (Experts(None, [0]), "space.experts.per_token=[0]: 0 is not allowed; 1 to 2"),
    ],
)
def test_options_beyond_the_model_are_refused(part: Experts, message: str) -> None:
    with pytest.raises(SettingError, match=re.escape(message)):
        part.genes(MOE)


def test_a_family_without_experts_is_refused() -> None:
    with pytest.raises(
        SettingError, match="space=experts needs a model with experts; the family 'llama' has"
    ):
        Experts().genes(SHAPE)


def test_widths_of_experts_are_multiples_of_8() -> None:
    assert Structured().options(MOE)["width"] == (0, 8, 16, 24, 32, 40, 48, 56, 64)
    thin = dataclasses.replace(MOE, ffn=24)
    assert Structured().options(thin)["width"] == (0, 8, 16, 24)
    assert Structured().options(dataclasses.replace(SHAPE, ffn=24))["width"][1] < 8
    with pytest.raises(SettingError, match="space.structured.ffn_multiple=12 must be a multiple of 8"):
        Structured(ffn_multiple=12).genes(MOE)


@pytest.mark.parametrize("given", [[], [3, 2], [2, 2]])
def test_options_rise(given: list[int]) -> None:
    for name in ("counts", "per_token"):
        with pytest.raises(SettingError, match=f"space.experts.{name}=.* must rise, and there must be some"):
            Experts(**{name: given})
