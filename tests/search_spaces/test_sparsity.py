"""The sparsity space: a gene a matrix, its costs counted by hand, and what it refuses."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.objective import parse_constraint
from autoprune.patterns import pattern_of, stored_bytes
from autoprune.shape import AnalyticCosts, full_plan, matrices
from autoprune.space import CostModel, Plan, Space, SublayerPlan
from autoprune.sublayers import SublayerSpace, join
from search_spaces.sparsity import Sparsity
from search_spaces.structured import Structured
from tests.contracts import SpaceContract
from tests.tabular import SHAPE


def space_of(*parts: Any) -> SublayerSpace:
    return join(parts, SHAPE, [AnalyticCosts(SHAPE)])


class TestOneMatrixASublayer(SpaceContract):
    def make(self) -> Space:
        return space_of(Sparsity(matrices=["o", "down"]))

    def models(self) -> Sequence[CostModel]:
        return (AnalyticCosts(SHAPE),)

    def bounds(self, space: Space) -> list[dict[str, str]]:
        return [{"params": "0.8x"}, {"bytes": "0.85x"}, {"params": "0.85x", "flops": "0.95x"}]


def test_a_gene_a_matrix_and_block_in_depth_order() -> None:
    names = [g.name for g in Sparsity().genes(SHAPE)]
    block = ["attention.q", "attention.k", "attention.v", "attention.o", "ffn.gate", "ffn.up", "ffn.down"]
    assert names[:7] == [f"block0.{m}.unstructured" for m in block] and len(names) == 7 * SHAPE.blocks
    plain = dataclasses.replace(SHAPE, gated=False)
    assert "block0.ffn.gate.unstructured" not in [g.name for g in Sparsity().genes(plain)]


@pytest.mark.parametrize(("pattern", "last"), [("unstructured", 100), (4, 4), ("8x1", 100), ("8x2", 100)])
def test_the_last_options_are_the_dense_model(pattern: str | int, last: int) -> None:
    space = space_of(Structured(), Sparsity(pattern))
    dense = space.decode(space.dense)
    assert dense.unmasked == full_plan(SHAPE)
    assert dict(dense.at(0, "ffn").settings)[f"up.{pattern}"] == last
    assert dict(space.cost(space.dense)) == dict(space_of(Structured()).cost(space_of(Structured()).dense))


@pytest.mark.parametrize(("pattern", "option"), [("unstructured", 37), ("4", 2), ("8", 5), ("8x2", 25)])
def test_only_kept_weights_count_after_slicing(pattern: str, option: int) -> None:
    costs = AnalyticCosts(SHAPE, tokens=5)
    whole = SublayerPlan.of("ffn", width=48)
    masked = SublayerPlan.of("ffn", width=48, **{f"down.{pattern}": option, f"up.{pattern}": option})
    assert matrices(SHAPE, masked) == {"gate": (48, 32), "up": (48, 32), "down": (32, 48)}
    dense, found, form = costs.sublayer(0, whole), costs.sublayer(0, masked), pattern_of(pattern)
    kept = form.kept(48, 32, option) + form.kept(32, 48, option)
    gone = 2 * 48 * 32 - kept
    assert kept == 2 * round(48 * 32 * option / form.full)
    assert dense["params"] - found["params"] == gone == dense["params_total"] - found["params_total"]
    assert dense["flops"] - found["flops"] == 2 * 5 * gone
    packed = stored_bytes(form, 48, 32, option, 2) + stored_bytes(form, 32, 48, option, 2)
    assert dense["bytes"] - found["bytes"] == 2 * (2 * 48 * 32) - packed


def test_index_bytes_count_and_what_does_not_pay_is_stored_dense() -> None:
    costs = AnalyticCosts(SHAPE)
    dense = costs.sublayer(0, SublayerPlan.of("ffn", width=64))["bytes"]
    half = costs.sublayer(0, SublayerPlan.of("ffn", width=64, **{"up.unstructured": 50}))["bytes"]
    assert dense - half == 64 * 32 * 2 - (64 * 32 + 64 * (32 // 8 + 4))
    most = costs.sublayer(0, SublayerPlan.of("ffn", width=64, **{"up.unstructured": 95}))
    assert (
        most["bytes"] == dense
        and most["params"] < costs.sublayer(0, SublayerPlan.of("ffn", width=64))["params"]
    )


def test_nothing_is_masked_of_a_sublayer_that_is_gone() -> None:
    space = space_of(Structured(), Sparsity())
    gone = space.dense.with_value(5, 0)
    assert space.genes[5].name == "block0.ffn.width"
    assert space.decode(gone).at(0, "ffn").gone
    assert space.decode(gone.with_value(6, 0)) == space.decode(gone)


def test_a_joint_bound_on_bytes_is_met_by_both() -> None:
    space = space_of(Structured(), Sparsity())
    limit = parse_constraint("bytes", "0.4x", space.cost(space.dense))
    plans: list[Plan] = []
    for seed in range(8):
        found = space.repair(space.dense, [limit], np.random.default_rng(seed))
        assert not limit.violation(space.cost(found))
        plans.append(space.decode(found))
    settings = {name for p in plans for s in p.sublayers for name, v in s.settings if 0 < v < 64}  # type: ignore[operator]
    assert {"width", "kv_groups", "up.unstructured", "q.unstructured"} <= settings


def test_settings_choose_matrices_and_densities() -> None:
    genes = Sparsity("8x1", matrices="up", densities=[25, 100]).genes(SHAPE)
    assert [(g.setting, g.options) for g in genes] == [("up.8x1", (25, 100))] * SHAPE.blocks
    assert Sparsity(4).options(SHAPE)["q.4"] == (1, 2, 3, 4)
    assert Sparsity(4, densities=[2, 4]).options(SHAPE) == {
        f"{m}.4": (2, 4) for m in ("q", "k", "v", "o", "gate", "up", "down")
    }


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"pattern": "2:4"},
            "space.sparsity.pattern=2:4 is unknown; allowed: unstructured, N:M as the M alone",
        ),
        (
            {"matrices": ["up", "dwon"]},
            "space.sparsity.matrices holds 'dwon', which is unknown; did you mean 'down'",
        ),
        ({"matrices": []}, "name at least one matrix, and each once"),
        ({"matrices": ["up", "up"]}, "name at least one matrix, and each once"),
        ({"densities": []}, "they are per cent, whole numbers that rise from at least 1 to 100"),
        ({"densities": 50}, "rise from at least 1 to 100, which keeps everything"),
        ({"densities": [50, 20, 100]}, "rise"),
        ({"densities": [0, 100]}, "rise"),
        ({"densities": [0.5, 100]}, "whole numbers"),
        (
            {"pattern": 4, "densities": [2, 3]},
            "they are N of 4, whole numbers that rise from at least 1 to 4",
        ),
    ],
)
def test_mistakes_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Sparsity(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": 5}, "space.sparsity.pattern=5 does not fit q: 32 inputs are no multiple of 5"),
        ({"pattern": "24x1"}, "does not fit q: 64 outputs are no multiple of 24"),
    ],
)
def test_a_pattern_that_does_not_fit_the_model_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingError, match=message):
        Sparsity(**settings).genes(SHAPE)


def test_a_matrix_that_the_model_lacks_is_refused() -> None:
    with pytest.raises(SettingError, match="matrices holds gate: llama has no such matrix"):
        Sparsity(matrices="gate").genes(dataclasses.replace(SHAPE, gated=False))
