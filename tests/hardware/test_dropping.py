"""Blocks that hand on fewer tokens: priced as whole plans, of classifiers and of decoders."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from autoprune.errors import InfeasibleError
from autoprune.hardware.designs import probes, random_plans
from autoprune.hardware.dropping import flows, returning
from autoprune.hardware.parts import WHOLE
from autoprune.hardware.table import LatencyTable
from autoprune.run.targets import read_targets
from autoprune.shape import Shape
from autoprune.space import Candidate, Plan, SublayerPlan, plan_cost
from tests.hardware.imagined import WORK, space_of


def test_fewer_tokens_are_priced_as_whole_plans(shape: Shape, imagined: Any) -> None:
    bert = replace(shape, blocks=6, task="sentences", specials=1)
    options = {"kv_groups": (2,), "width": (0, 8, 32), "keep_attention": (30, 60, 100)}
    space = space_of(bert, options, keep_attention=100)

    def seconds(plan: Plan, metric: str) -> float:
        total = 1.0
        for sublayer, (came, left, _) in zip(
            plan.sublayers, flows(plan, WORK.prefill_tokens, 1), strict=True
        ):
            if sublayer.kind == "attention" and not sublayer.gone:
                groups = int(sublayer.get("kv_groups"))
                total += 0.1 + groups * (came + 0.5 * came**2) + (0.2 if left < came else 0.0)
            elif not sublayer.gone:
                total += 0.1 + 0.1 * came * int(sublayer.get("width"))
        return total / 1000

    found = imagined(bert, space, seconds, options)
    assert found.metrics == ("prefill",) and found.coupled(options) == ("prefill",)
    assert found.coupled({"kv_groups": 1}) == ()
    for plan in random_plans(space, 12, seed=5):
        assert plan_cost(plan, found) == {"prefill": pytest.approx(1000 * seconds(plan, "prefill"), rel=0.02)}
    assert LatencyTable.from_json(found.to_json()) == found
    assert flows(Plan.of([(1, 8)]), 8, 1) == [WHOLE, WHOLE]


def test_dropped_prompt_tokens_are_priced_as_whole_plans(shape: Shape, imagined: Any) -> None:
    """Prefill gets cheaper by what is read, decoding dearer by what is ranked, gathered and computed again."""
    options = {"kv_groups": (0, 1, 2), "width": (0, 8, 32), "keep_prefill": (25, 50, 75, 100)}
    llama = replace(shape, blocks=6)
    space = space_of(llama, options, keep_prefill=100)

    def seconds(plan: Plan, metric: str) -> float:
        total, cut = 1.0, any(0 < int(s.get("keep_prefill", 100)) < 100 for s in plan.sublayers)
        for sublayer, (came, *_) in zip(plan.sublayers, flows(plan, WORK.prefill_tokens, 0), strict=True):
            if sublayer.gone:
                continue
            attention = sublayer.kind == "attention"
            size = int(sublayer.get("kv_groups")) / 2 if attention else int(sublayer.get("width")) / 32
            if metric == "decode":
                back = returning(came, WORK.context, WORK.decode_steps)
                total += 0.1 + size + back * (0.2 if attention else 0.1 + 0.2 * size)
                total += 0.4 if cut and attention else 0.0
            else:
                total += 0.1 + size * came + (0.5 * size * came**2 if attention else 0.0)
            total += 0.2 if int(sublayer.get("keep_prefill", 100)) < 100 else 0.0  # ranking
        return total / 1000

    found = imagined(llama, space, seconds, options)
    assert found.coupled(options) == ("prefill", "decode")
    for plan in random_plans(space, 12, seed=5):
        for metric in ("prefill", "decode"):
            assert plan_cost(plan, found)[metric] == pytest.approx(1000 * seconds(plan, metric), rel=0.02)
    drops = [
        sum(s.get("keep_prefill", 0) != 100 for s in p.sublayers[::2]) for p in probes(space, 40).values()
    ]
    assert drops.count(0) > 10 and max(drops) >= 5  # some of the probes drop no tokens, some many
    whole = space.decode(space.dense)
    cut = Plan(tuple(replace(s, settings=_with(s, 50)) for s in whole.sublayers))
    assert plan_cost(cut, found)["prefill"] < 0.6 * plan_cost(whole, found)["prefill"]
    assert plan_cost(cut, found)["decode"] > 1.1 * plan_cost(whole, found)["decode"]
    assert LatencyTable.from_json(found.to_json()) == found


def test_decoding_that_dropped_tokens_make_dearer_is_bounded(shape: Shape, imagined: Any) -> None:
    """A space of nothing but prompt tokens: its smallest candidate is the slowest to decode."""
    options = {"kv_groups": (0, 1, 2), "width": (0, 8, 32), "keep_prefill": (25, 50, 75, 100)}
    llama = replace(shape, blocks=6)
    whole = space_of(llama, options, keep_prefill=100)

    def seconds(plan: Plan, metric: str) -> float:
        kept = [int(s.get("keep_prefill")) / 100 for s in plan.sublayers if s.kind == "attention"]
        share = sum(kept) / len(kept)
        return 0.001 * (0.2 + share if metric == "prefill" else 4 - 3 * share)

    table = imagined(llama, whole, seconds, options)
    space = replace(whole, costs=(table,), genes=tuple(g for g in whole.genes if g.setting == "keep_prefill"))
    (loose,) = read_targets({"decode": "1.5x"}, space)
    for seed in range(4):
        start = Candidate(tuple(np.random.default_rng(seed).integers(4, size=6).tolist()))
        found = space.repair(start, loose.constraints, np.random.default_rng(seed))
        assert loose.met(space.cost(found))
    with pytest.raises(InfeasibleError, match=r"decode=0\.5x cannot be met: .*1\.000x of dense"):
        read_targets({"decode": "0.5x"}, space)
    with pytest.raises(
        InfeasibleError, match=r"decode=1\.1x cannot be met together with prefill: the nearest"
    ):
        read_targets({"decode": "1.1x", "prefill": "0.7x"}, space)


def test_prompt_tokens_that_go_for_good_make_decoding_cheaper(shape: Shape, imagined: Any) -> None:
    """What a block does not have of the prompt, it does not read."""
    options = {"kv_groups": (0, 1, 2), "width": (0, 8, 32), "keep_prompt": (25, 50, 75, 100)}
    llama = replace(shape, blocks=6)
    space = space_of(llama, options, keep_prompt=100)

    def seconds(plan: Plan, metric: str) -> float:
        total = 1.0
        cut = any(0 < int(s.get("keep_prompt", 100)) < 100 for s in plan.sublayers)
        for sublayer, (came, *_) in zip(plan.sublayers, flows(plan, WORK.prefill_tokens, 0), strict=True):
            if sublayer.gone:
                continue
            attention = sublayer.kind == "attention"
            size = int(sublayer.get("kv_groups")) / 2 if attention else int(sublayer.get("width")) / 32
            read = came if metric == "prefill" else 1.0
            total += 0.1 + size * read + (0.1 if cut and attention else 0.0)
            total += 0.5 * size * came**2 if attention and metric == "prefill" else 0.0
            total -= 0.4 * size * (1 - came) if attention and metric == "decode" else 0.0
        return total / 1000

    found = imagined(llama, space, seconds, options)
    assert found.coupled(options) == ("prefill", "decode")
    for plan in random_plans(space, 12, seed=5):
        for metric in ("prefill", "decode"):
            assert plan_cost(plan, found)[metric] == pytest.approx(1000 * seconds(plan, metric), rel=0.02)
    whole = space.decode(space.dense)
    keep = {"keep_prompt": 50}
    settings = [tuple((n, keep.get(n, v)) for n, v in s.settings) for s in whole.sublayers]
    cut = Plan(tuple(replace(s, settings=own) for s, own in zip(whole.sublayers, settings, strict=True)))
    for metric in ("prefill", "decode"):
        assert plan_cost(cut, found)[metric] < 0.95 * plan_cost(whole, found)[metric]
    assert LatencyTable.from_json(found.to_json()) == found


def _with(sublayer: SublayerPlan, keep: int) -> tuple[tuple[str, Any], ...]:
    return tuple((n, keep if n == "keep_prefill" else v) for n, v in sublayer.settings)
