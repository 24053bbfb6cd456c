"""The space of query heads: the contract, and what is told in one line."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
from omegaconf import OmegaConf

from autoprune.errors import SettingError
from autoprune.run.prompts import check_settings
from autoprune.shape import AnalyticCosts
from autoprune.space import CostModel
from autoprune.sublayers import SublayerSpace, join
from search_spaces.heads import Heads
from search_spaces.kv_cache import KVCache
from search_spaces.sparsity import Sparsity
from search_spaces.structured import Structured
from tests.contracts import SpaceContract
from tests.tabular import SHAPE

WIDE = dataclasses.replace(SHAPE, kv_groups=2)  # four query heads each
COSTS = AnalyticCosts(WIDE, 64)


class TestHeads(SpaceContract):
    def make(self) -> SublayerSpace:
        found = join([Heads()], WIDE, [COSTS])
        assert isinstance(found, SublayerSpace)
        return found

    def models(self) -> Sequence[CostModel]:
        return (COSTS,)

    def bounds(self, space: Any) -> list[dict[str, str]]:
        """Only attention's weights change."""
        return [{"params": "0.9x"}, {"flops": "0.9x"}, {"params": "0.92x", "bytes": "0.95x"}]


def test_two_genes_of_one_attention() -> None:
    found = join([Structured(), Heads()], WIDE, [COSTS])
    assert [g.setting for g in found.genes[:3]] == ["kv_groups", "group_heads", "width"]
    gone = found.decode(found.dense.with_value(0, 0))
    assert dict(gone.at(0, "attention").settings) == {"group_heads": 0, "kv_groups": 0}
    half = found.decode(found.dense.with_value(0, 1).with_value(1, 1)).at(0, "attention")
    both = COSTS.sublayer(0, half)["params"]
    weights = 2 * WIDE.hidden * WIDE.head_dim * (2 + 1)  # two query heads of one group, its key and value
    assert both == weights + WIDE.norm_params


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], r"space.heads.options=\[\] must be whole numbers that rise, at least one"),
        ([3, 1], r"options=\[3, 1\] must be whole numbers that rise"),
        ([2, 2], "must be whole numbers that rise"),
        ([1.5], "must be whole numbers that rise"),
        ([0, 2], r"options=\[0, 2\]: a KV group of this model keeps 1 to 3 query heads; 4, all, is added"),
        ([2, 4], "keeps 1 to 3 query heads"),
    ],
)
def test_bad_options_are_told_in_one_line(options: Any, said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        Heads(options).options(WIDE)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_groups_of_one_head_are_refused(family: str) -> None:
    shape = dataclasses.replace(WIDE, kv_groups=8, model_type=family)
    with pytest.raises(
        SettingError, match=f"several query heads in a KV group; this {family} has 8 groups of one"
    ):
        join([Heads()], shape, [COSTS])


def test_norms_over_all_heads_are_refused() -> None:
    shape = dataclasses.replace(WIDE, model_type="olmoe", group_norm_params=8)
    with pytest.raises(SettingError, match="does not fit olmoe, which norms all its heads at once"):
        join([Heads()], shape, [COSTS])


@pytest.mark.parametrize(
    ("beside", "settings", "said"),
    [
        (
            Sparsity(),
            {},
            r"space: heads takes query heads out of KV groups that space=\[sparsity\] ranks whole",
        ),
        (KVCache("streaming"), {}, "that policy=streaming ranks whole; leave one out"),
        (Structured(), {"export": {"refit": True}}, "export.refit=true solves whole KV groups"),
    ],
)
def test_what_does_not_go_with_it(beside: Any, settings: dict[str, Any], said: str) -> None:
    cfg: Any = OmegaConf.create({"evaluator": {}, "export": {"refit": False}, **settings})
    with pytest.raises(SettingError, match=said):
        check_settings(cfg, [Heads(), beside], WIDE)
    check_settings(
        OmegaConf.create({"evaluator": {}, "export": {"refit": False}}), [Heads(), Structured()], WIDE
    )  # type: ignore[arg-type]
