"""The space of KV caches: options, bounds, and what is settled beside them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.kv_policy import Accumulated, KeyChannels, Streaming, Window, caches_less, policy_of
from autoprune.shape import AnalyticCosts
from autoprune.space import Candidate, CostModel, Space
from autoprune.sublayers import SublayerSpace, join
from search_spaces.kv_cache import KVCache
from search_spaces.structured import Structured
from tests.contracts import SpaceContract
from tests.tabular import SHAPE

COSTS = AnalyticCosts(SHAPE, 64)


def space(policy: str = "window", **settings: Any) -> SublayerSpace:
    """The space of SHAPE for windows of 64 tokens."""
    return join([KVCache(policy, **settings).for_window(64)], SHAPE, [COSTS])


class TestKVCache(SpaceContract):
    def make(self) -> SublayerSpace:
        return space("accumulated")

    def models(self) -> Sequence[CostModel]:
        return (COSTS,)

    def bounds(self, space: Space) -> list[dict[str, str]]:
        """It changes nothing else."""
        return [{"kv_bytes": "0.6x"}, {"kv_bytes": "0.3x"}]


@pytest.mark.parametrize(
    ("policy", "options", "first"),
    [
        ("window", (8, 12, 16, 24, 32, 48, 64), Window(8, 4)),
        ("accumulated", (12, 16, 24, 32, 48, 64), Accumulated(12, 8, 0.9)),
        ("streaming", (0, 1, 2, 3, 4), Streaming(0, 4, 8)),
        ("key_channels", (2, 3, 4, 5, 6, 8), KeyChannels(2, 8)),
    ],
)
def test_options_rise_to_the_exact_cache(policy: str, options: tuple[int, ...], first: Any) -> None:
    found = space(policy, forgetting=0.9)
    assert {g.options for g in found.genes} == {options} and len(found.genes) == SHAPE.blocks  # type: ignore[union-attr]
    assert policy_of(found.decode(Candidate((0,) * SHAPE.blocks)).at(1, "attention")) == first
    assert policy_of(found.decode(found.dense).at(1, "attention")) is None
    assert (
        found.cost(found.dense)["kv_bytes"]
        == join([Structured()], SHAPE, [COSTS]).cost(join([Structured()], SHAPE, [COSTS]).dense)["kv_bytes"]
    )


def test_bytes_rise_with_the_option_and_stop_at_the_budget() -> None:
    found = space(options=[8, 16, 40])
    costs = [found.cost(Candidate((o,) * SHAPE.blocks)) for o in range(4)]
    assert [c["kv_bytes"] / costs[-1]["kv_bytes"] for c in costs] == [8 / 64, 16 / 64, 40 / 64, 1.0]
    assert len({c["params"] for c in costs}) == len({c["flops"] for c in costs}) == 1
    longer = join(
        [KVCache(options=[8, 16, 40]).for_window(64)], SHAPE, [dataclasses.replace(COSTS, tokens=999)]
    )
    least = Candidate((0,) * SHAPE.blocks)
    assert longer.cost(least)["kv_bytes"] == found.cost(least)["kv_bytes"]


def test_several_genes_of_one_attention() -> None:
    found = join([Structured(), KVCache().for_window(64)], SHAPE, [COSTS])
    assert [g.setting for g in found.genes[:3]] == ["kv_groups", "kv_budget", "width"]
    assert found.cost_table("kv_bytes") is None
    gone = found.dense.with_value(0, 0)
    assert dict(found.decode(gone).at(0, "attention").settings) == dict.fromkeys(
        ("kv_budget", "kv_full", "kv_groups", "kv_sink"), 0
    )
    assert found.decode(gone).key == found.decode(gone.with_value(1, 0)).key


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"policy": "acumulated"}, "policy=acumulated is unknown.*accumulated"),
        ({"sink": -1}, "sink=-1 must be at least 0"),
        ({"recent": 0}, "recent=0 must be at least 1"),
        ({"forgetting": 1.5}, "forgetting=1.5 must be from 0 to 1"),
        ({"options": [16, 8]}, r"options=\[16, 8\] must rise"),
        ({"options": []}, r"options=\[\] must rise"),
        (
            {"options": [4, 8]},
            r"options=\[4, 8\]: policy=window takes 5 \(sink=4 and one\) to 63; 64, all, is added",
        ),
        ({"options": [64]}, r"options=\[64\]: policy=window takes 5"),
        ({"policy": "accumulated", "options": [8]}, r"takes 9 \(recent=8 and one\) to 63"),
        ({"policy": "streaming", "options": [4]}, "takes 0 to 3; 4, all, is added"),
        ({"policy": "key_channels", "options": [0]}, "takes 1 to 7; 8, all, is added"),
        ({"sink": 60}, r"window=64 is too short for space=\[kv_cache\] \(sink=60 and one\)"),
    ],
)
def test_bad_settings_are_told_in_one_line(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said) as caught:
        space(**settings)
    assert "\n" not in str(caught.value)


def test_a_space_says_whether_caches_are_cut() -> None:
    assert caches_less(KVCache().for_window(64).options(SHAPE))
    assert not caches_less(Structured().options(SHAPE))
