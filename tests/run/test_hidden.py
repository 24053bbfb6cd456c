"""The setting of the hidden width, and what ratios are to where there is one."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.errors import AutopruneError, UnsupportedModelError
from autoprune.objective import parse_constraint
from autoprune.run.hidden import Given, hidden_width
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, dense_costs
from autoprune.sublayers import SublayerSpace, join
from autoprune.uniform import uniform_candidates
from search_spaces.structured import Structured
from tests.tabular import SHAPE

WIDE = dataclasses.replace(SHAPE, hidden=64)  # 8 heads


@pytest.mark.parametrize(
    ("setting", "width"), [("1x", 64), ("1.0x", 64), ("0.9x", 56), ("0.5x", 32), ("40", 40), (64, 64)]
)
def test_a_share_is_the_next_multiple_of_the_heads_below(setting: Any, width: int) -> None:
    assert hidden_width(setting, WIDE) == width


@pytest.mark.parametrize(
    "setting", ["0x", "0.1x", "1.1x", "-1", "0", "65", "41", "72", "x", "much", "nanx", "infx"]
)
def test_a_width_that_cannot_be_is_one_line(setting: str) -> None:
    with pytest.raises(
        AutopruneError, match=f"hidden={setting} must be a share of the hidden size, as 0.9x"
    ) as told:
        hidden_width(setting, WIDE)
    assert "multiple of 8 (the heads): 8 to 64" in str(told.value) and "\n" not in str(told.value)


@pytest.mark.parametrize("family", ["gpt2", "gemma", "mixtral", "bert"])
def test_other_families_are_refused_with_the_supported_ones(family: str) -> None:
    shape = dataclasses.replace(WIDE, model_type=family)
    with pytest.raises(
        UnsupportedModelError, match="cannot be rotated; supported: llama, mistral, qwen2, qwen3"
    ):
        hidden_width("0.9x", shape)


def test_ratios_are_to_the_model_as_given() -> None:
    small = dataclasses.replace(WIDE, hidden=48, tied=False)
    given = Given(SimpleNamespace(), SimpleNamespace(shape=WIDE))  # type: ignore[arg-type]
    plain = join([Structured()], small, [AnalyticCosts(small, 32)])
    assert isinstance(plain, SublayerSpace)
    space = dataclasses.replace(plain, reference=given.costs(32))
    whole, own = dense_costs(space), space.cost(space.dense)
    assert (
        dense_costs(plain) == own and whole["params"] > own["params"] and whole["kv_bytes"] == own["kv_bytes"]
    )
    bound = parse_constraint("params", "0.7x", whole)
    fixed = space.repair(space.dense, [bound], np.random.default_rng(0))
    assert own["params"] * 0.7 < space.cost(fixed)["params"] <= 0.7 * whole["params"]
    for found in uniform_candidates(space, 0.6, "params"):
        assert 0.55 * whole["params"] < space.cost(found)["params"] <= 0.6 * whole["params"]
    assert uniform_candidates(space, 0.99, "params")[0] == space.dense
    tiny = parse_constraint("params_total", 5.0, whole)
    with pytest.raises(AutopruneError, match="smallest feasible value"):
        space.repair(Candidate(space.dense.values), [tiny], np.random.default_rng(0))
    told = given.told(own, 48, 32)
    assert (
        told.startswith("All plans have 48 of 64 hidden dimensions")
        and f"{own['params'] / whole['params']:.3f}x" in told
    )
