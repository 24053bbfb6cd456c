"""A space over some sublayers of a plan: the rest stays as it is, and costs what it costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from autoprune.errors import SpaceError
from autoprune.objective import Constraint
from autoprune.shape import AnalyticCosts
from autoprune.space import ArrayGene, Candidate, CostModel, OptionGene, Plan, SublayerPlan
from autoprune.sublayers import SublayerSpace
from tests.contracts import SpaceContract
from tests.tabular import SHAPE, StepCosts, structured_space

FULL = Plan.of([(4, 64), (2, 64), (4, 48)])
WIDTH = (0, 16, 32, 64)
SOME = (OptionGene(0, "ffn", "width", WIDTH), OptionGene(2, "attention", "kv_groups", (1, 2, 4)))


class TestSomeSublayers(SpaceContract):
    """Genes for two of six sublayers; costs depend on the block, so the other four must be priced in their places."""

    ways = 1

    def make(self) -> SublayerSpace:
        return SublayerSpace(SOME, FULL, tuple(self.models()))

    def models(self) -> Sequence[CostModel]:
        return (AnalyticCosts(SHAPE), StepCosts())

    def bounds(self, space: object) -> list[dict[str, str]]:
        return [{"params": "0.8x"}, {"decode": "0.9x"}, {"params": "0.9x", "decode": "0.85x"}]

    def test_other_candidate_other_key(self) -> None:  # type: ignore[override]
        space = self.make()
        keys = {space.decode(Candidate((a, b))).key for a in range(4) for b in range(3)}
        assert len(keys) == 12


def test_what_has_no_gene_stays_as_it_is() -> None:
    space = SublayerSpace(SOME, FULL, (StepCosts(),))
    assert space.decode(Candidate((1, 0))).widths() == [(4, 16), (2, 64), (1, 48)]


@dataclass(frozen=True)
class _Noisy:
    """A measured table whose middle option happened to be slow."""

    @property
    def base(self) -> Mapping[str, float]:
        return {"decode": 1.0}

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        return {"decode": {0: 0.0, 16: 2.0, 32: 1.5, 64: 3.0}.get(int(plan.settings[0][1]), 0.0)}


def test_a_measured_cost_that_falls_is_levelled() -> None:
    space = SublayerSpace((OptionGene(0, "ffn", "width", WIDTH),), Plan.of([(4, 64)]), (_Noisy(),))
    table = space.cost_table("decode")
    assert table is not None and table.entries == ((0.0, 2.0, 2.0, 3.0),)


def test_repair_crosses_a_plateau() -> None:
    """Lowering one option of a level stretch saves nothing; repair must go on, and come back where it can."""
    genes = tuple(OptionGene(b, "ffn", "width", WIDTH) for b in range(2))
    space = SublayerSpace(genes, Plan.of([(4, 64)] * 2), (_Noisy(),))
    fixed = space.repair(Candidate((2, 2)), [Constraint("decode", 3.0)], np.random.default_rng(0))
    assert sorted(fixed.indices()) == [0, 2]


def test_repair_leaves_alone_what_fits() -> None:
    space = structured_space()
    limit = Constraint("params", space.cost(space.dense)["params"])
    assert space.repair(space.dense, [limit], np.random.default_rng(0)) == space.dense


def test_an_unknown_cost_is_refused_with_the_known_ones() -> None:
    with pytest.raises(SpaceError, match="'ms' is not a cost; costs: bytes, decode, flops"):
        structured_space().cost_table("ms")


@pytest.mark.parametrize(
    ("gene", "message"),
    [
        (OptionGene(3, "ffn", "width", WIDTH), "block3.ffn.width .* 3 blocks"),
        (OptionGene(-1, "ffn", "width", WIDTH), "block-1.ffn.width .* 3 blocks"),
        (OptionGene(0, "ffn", "kv_groups", (0, 1)), "ffn has no setting 'kv_groups'"),
    ],
)
def test_genes_outside_the_model_are_refused(gene: OptionGene, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        SublayerSpace((gene,), FULL, (StepCosts(),))


def test_two_genes_that_set_the_same_are_refused() -> None:
    with pytest.raises(SpaceError, match="set the same"):
        SublayerSpace((SOME[0], SOME[0]), FULL, (StepCosts(),))


def test_array_genes_are_refused() -> None:
    space = SublayerSpace((ArrayGene(0, "ffn", "width", (2,), 0.0, 1.0),), FULL, (StepCosts(),))
    with pytest.raises(SpaceError, match="block0.ffn.width is an array gene"):
        _ = space.dense
    with pytest.raises(SpaceError, match="option genes only"):
        space.decode(Candidate(((0.5, 0.5),)))


def test_digest_tells_spaces_apart_and_ignores_costs() -> None:
    one = SublayerSpace(SOME, FULL, (StepCosts(),))
    assert one.digest() == SublayerSpace(SOME, FULL, (AnalyticCosts(SHAPE),)).digest()
    fewer = SublayerSpace(SOME[:1], FULL, (StepCosts(),))
    other = SublayerSpace(SOME, Plan.of([(4, 64), (2, 64), (4, 32)]), (StepCosts(),))
    options = SublayerSpace((OptionGene(0, "ffn", "width", (0, 64)), SOME[1]), FULL, (StepCosts(),))
    assert len({s.digest() for s in (one, fewer, other, options)}) == 4
