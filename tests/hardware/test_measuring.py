"""Measuring a table: what its probes hold, what is fitted to them, and that every kind of gene is found again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.hardware import measuring
from autoprune.hardware import workload as workloads
from autoprune.hardware.designs import probes, random_plans
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.measuring import measure_table
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.terms import hits
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import Decode
from autoprune.shape import Shape, full_plan
from autoprune.space import KINDS, Plan, SublayerPlan, plan_cost
from tests.hardware.imagined import OPTIONS, SKEW, WORK, space_of


def seconds_of(model: Any) -> float:
    """A machine whose time is linear in the parameters inside blocks, with an overhead no sublayer shows."""
    inside = sum(p.numel() for p in model.model.layers.parameters())
    return 0.002 + 1e-6 * float(inside)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the clock by `seconds_of`; the numbers of items of each loop are kept."""
    loops: list[int] = []

    def fake(items: Any, *_: Any, **__: Any) -> dict[str, Samples]:
        loops.append(len(items))
        share = {Decode: 0.25}
        return {k: Samples((seconds_of(c.model) * share.get(type(c), 1.0),) * 4) for k, c in items.items()}

    monkeypatch.setattr(workloads, "interleaved", fake)
    return loops


def test_entries_are_what_one_sublayer_adds(build: Any, shape: Shape, machine: list[int]) -> None:
    full, options = full_plan(shape), {"kv_groups": (0, 1, 2), "width": (0, 8, 16)}
    found = measure_table(build, shape, full, options, WORK)
    assert machine == [2 * (1 + 18)]  # dense, and as many probes as there are at least
    assert [(e.kind, e.option) for e in found.entries] == [
        *(("attention", 1), ("attention", 2), ("ffn", 8), ("ffn", 16), ("ffn", 32))
    ]
    assert found.base == pytest.approx({"prefill": 2.0, "decode": 0.5}, rel=1e-3)
    for plan in (Plan.of([(2, 32), (1, 16)]), Plan.of([(0, 12), (2, 0)])):
        seconds = seconds_of(build(plan))
        expected = {"prefill": 1000 * seconds, "decode": 250 * seconds}
        assert plan_cost(plan, found) == pytest.approx(expected, rel=1e-3)
    assert found.dense_ms["prefill"] == pytest.approx(1000 * seconds_of(build(Plan.of([(2, 32)] * 2))))
    assert found.dtype == "float32" and found.fingerprint == fingerprint(1) and not found.error
    found.check_model(shape, "float32", {"kv_groups": (0, 1, 2), "width": (0, 8, 16, 32)})
    assert LatencyTable.from_json(found.to_json()) == found


def test_probes_hold_every_option_among_others(shape: Shape) -> None:
    plans = probes(space_of(replace(shape, blocks=12)), 6)
    assert list(plans) == ["dense", *(f"probe {i}" for i in range(18))]
    assert plans["dense"].widths() == [(2, 32)] * 12
    common = [max(set(w), key=w.count) for w in ([w for _, w in p.widths()] for p in plans.values())]
    assert {8, 32} <= set(common)
    assert sum(len(set(p.widths())) > 2 for p in plans.values()) > 10  # other blocks hold others
    gone = [[sum(s.gone for s in p.sublayers if s.kind == kind) for kind in KINDS] for p in plans.values()]
    assert not any(sum(row) for i, row in enumerate(gone) if i % 3)  # dense comes first
    emptier = gone[3::3]
    assert len(emptier) == 6 and all(map(sum, emptier)) and max(map(sum, emptier)) > 12
    assert any(abs(few - many) > 3 for few, many in emptier)  # models of little else than one kind, too
    assert len(probes(space_of(shape), 40)) == 1 + 60


def test_the_table_and_its_correction_come_from_one_loop(
    build: Any, shape: Shape, machine: list[int]
) -> None:
    full, space = full_plan(shape), space_of(shape)
    plans = random_plans(space, 10, seed=0)
    held = [p for p in random_plans(space, 5, seed=1) if p not in plans]
    given = build, shape, full, OPTIONS, WORK
    found = measure_table(*given, correction_plans=plans, held_out_plans=held)
    assert machine == [2 * (1 + 18 + len(plans) + len(held))]
    assert found.correction["prefill"] == pytest.approx((0.0, 1.0), abs=1e-2)
    assert found.error["decode"].plans == len(held) > 0
    assert found.error["decode"].largest == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(SettingError, match="one of those that the correction is fitted to"):
        measure_table(*given, correction_plans=plans, held_out_plans=plans[:1])
    with pytest.raises(SettingError, match="at least 4 different plans, not 1"):
        measure_table(*given, correction_plans=plans[:1] * 5)


def test_the_correction_mends_what_entries_do_not_add_up_to(
    build: Any, shape: Shape, machine: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = random_plans(space_of(shape), 10, seed=0)
    right = measuring.additive
    monkeypatch.setattr(measuring, "additive", lambda *given: [0.5 * x for x in right(*given)])
    found = measure_table(build, shape, full_plan(shape), OPTIONS, WORK, correction_plans=plans)
    assert found.correction["prefill"] == pytest.approx((0.0, 2.0), abs=5e-2)
    plan = Plan.of([(1, 8), (2, 32)])
    assert plan_cost(plan, found)["prefill"] == pytest.approx(1000 * seconds_of(build(plan)), rel=1e-2)


def test_correction_plans_tell_entries_and_are_left_out_of_their_own_error(
    shape: Shape, imagined: Any
) -> None:
    """Whole models of which one takes twice as long: its own error must show that, entries must not be moved by it."""
    space, wide = space_of(replace(shape, blocks=6)), replace(shape, blocks=6)
    plans = random_plans(space, 8, seed=0)

    def seconds(plan: Plan, metric: str) -> float:
        sizes = 1 + sum(2 * groups + width / 4 for groups, width in plan.widths())
        return sizes / 1000 * (2 if plan == plans[3] else 1)

    found = imagined(wide, space, seconds, OPTIONS, correction_plans=plans)
    assert found.error["prefill"].plans == 8 and found.error["prefill"].largest > 0.45
    asked: list[int] = []
    honest = measuring.additive

    def counted(amounts: Any, times: Any, *given: Any) -> list[float]:
        asked.append(len(times))
        return honest(amounts, times, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "additive", counted)
        imagined(wide, space, seconds, OPTIONS, correction_plans=plans)
        held = [p for p in random_plans(space, 6, seed=1) if p not in plans]
        assert {27, 26} == set(asked)  # dense, 18 probes, 8 correction plans; one of these left out
        asked.clear()
        imagined(wide, space, seconds, OPTIONS, correction_plans=plans, held_out_plans=held)
        assert {27} == set(asked)


def test_masks_are_priced_as_a_change_of_their_matrices(shape: Shape, imagined: Any) -> None:
    options = OPTIONS | {"up.8x2": (25, 50, 100), "down.8x2": (25, 50, 100), "q.8x2": (50, 100)}
    space = space_of(replace(shape, blocks=6), options, **{"up.8x2": 100, "down.8x2": 100, "q.8x2": 100})

    def seconds(plan: Plan, metric: str) -> float:
        total = 5.0
        for sublayer in plan.sublayers:
            if sublayer.kind == "attention":
                total += int(sublayer.get("kv_groups")) * (1 + 0.1 * int(sublayer.get("q.8x2")) / 100)
            else:
                up, down = (int(sublayer.get(f"{n}.8x2")) for n in ("up", "down"))
                width = int(sublayer.get("width"))
                total += width * (0.1 + 0.02 * up / 100 + 0.03 * down / 100) + (0.3 if 0 < up < 100 else 0)
        return total / 1000 * (1 if metric == "prefill" else 0.25)

    found = imagined(replace(shape, blocks=6), space, seconds, options)
    names = [e.text for e in found.entries]
    assert "ffn up.8x2 25" in names and "ffn up.8x2 overhead" in names and "attention q.8x2 50" in names
    for plan in random_plans(space, 12, seed=5):
        assert plan_cost(plan, found)["prefill"] == pytest.approx(1000 * seconds(plan, "prefill"), rel=2e-3)
    assert LatencyTable.from_json(found.to_json()) == found
    found.check_model(replace(shape, blocks=6), "float32", options)
    whole = SublayerPlan.of("ffn", **{"width": 32, "up.8x2": 100, "down.8x2": 100})
    half = SublayerPlan.of("ffn", **{"width": 32, "up.8x2": 100, "down.8x2": 50})
    assert found.sublayer(0, half)["prefill"] < 0.95 * found.sublayer(0, whole)["prefill"]
    with pytest.raises(
        SettingError, match=r"down.8x2=10 is outside the latency table, which measured 25..100"
    ):
        found.sublayer(0, SublayerPlan.of("ffn", **{"width": 32, "down.8x2": 10}))


def test_experts_are_priced_by_how_many_are_hit(shape: Shape, imagined: Any) -> None:
    moe = replace(shape, blocks=6, experts=8, experts_per_token=2, ffn=32)
    options = {
        "kv_groups": (2,),
        "width": (0, 8, 16, 32),
        "experts": (0, 2, 4, 6, 8),
        "experts_per_token": (1, 2),
    }
    space = space_of(moe, options, experts=8, experts_per_token=2)

    def seconds(plan: Plan, metric: str) -> float:
        total, tokens = 3.0, WORK.tokens[metric]
        for sublayer in plan.sublayers:
            if sublayer.kind == "attention":
                total += 0.5 * int(sublayer.get("kv_groups"))
            elif not sublayer.gone:
                e, k, w = (int(sublayer.get(n)) for n in ("experts", "experts_per_token", "width"))
                step = {8: 0.1, 16: 0.5, 32: 0.55}[w]  # products of few tokens change their way
                total += 0.2 + 0.01 * e + hits(e, k, tokens, SKEW) * step + tokens * k * w * 1e-3
        return total / 1000

    found = imagined(moe, space, seconds, options, correction_plans=random_plans(space, 10, 1))
    for plan in random_plans(space, 12, seed=5):
        for metric in ("prefill", "decode"):
            assert plan_cost(plan, found)[metric] == pytest.approx(1000 * seconds(plan, metric), rel=0.01)
    assert found.skew == SKEW
    assert hits(8, 2, 1) == pytest.approx(2) and 7.9 < hits(8, 2, 16) < 8
    assert hits(8, 2, 16) == pytest.approx(8 * (1 - 0.75**16), abs=1e-3)
    assert hits(8, 2, 1, 1.0) == pytest.approx(2) and 4 < hits(8, 2, 16, 1.0) < 5 and hits(3, 3, 9, 2.0) == 3
    assert LatencyTable.from_json(found.to_json()) == found


def test_a_cut_cache_is_priced_by_its_budget(shape: Shape, imagined: Any) -> None:
    options = {"kv_groups": (0, 1, 2), "width": (32,), "kv_budget": (3, 4, 6, 8)}
    own = {"kv_budget": 8, "kv_full": 8, "kv_sink": 1}
    space = space_of(replace(shape, blocks=6), options, **own)

    def seconds(plan: Plan, metric: str) -> float:
        total = 3.0
        for sublayer in (s for s in plan.sublayers if s.kind == "attention" and not s.gone):
            budget, groups = int(sublayer.get("kv_budget")), int(sublayer.get("kv_groups"))
            total += groups * (1 if budget == 8 else 0.8) + {3: 0.1, 4: 0.5, 6: 0.55, 8: 0}[budget]
        return total / 1000

    found = imagined(replace(shape, blocks=6), space, seconds, options)
    assert found.settled == {"kv_full": 8, "kv_sink": 1}
    for plan in random_plans(space, 12, seed=5):
        assert plan_cost(plan, found)["decode"] == pytest.approx(1000 * seconds(plan, "decode"), rel=5e-3)


def test_query_heads_are_priced_as_a_change_of_the_groups(shape: Shape, imagined: Any) -> None:
    wide = replace(shape, blocks=6, heads=8)
    options = {"kv_groups": (0, 1, 2), "width": (32,), "group_heads": (1, 2, 3, 4)}
    space = space_of(wide, options, group_heads=4)

    def seconds(plan: Plan, metric: str) -> float:
        attention = [s for s in plan.sublayers if s.kind == "attention" and not s.gone]
        sizes = [(int(s.get("kv_groups")), int(s.get("group_heads"))) for s in attention]
        return (3.0 + sum(groups * (0.2 + 0.1 * heads) for groups, heads in sizes)) / 1000

    found = imagined(wide, space, seconds, options)
    assert "attention group_heads 2" in [e.text for e in found.entries]
    for plan in random_plans(space, 12, seed=5):
        assert plan_cost(plan, found)["decode"] == pytest.approx(1000 * seconds(plan, "decode"), rel=2e-3)


def test_random_plans_go_from_small_to_large_with_sublayers_gone(shape: Shape) -> None:
    space = space_of(replace(shape, blocks=12))
    plans = random_plans(space, 12, seed=3)
    assert plans == random_plans(space, 12, seed=3)
    assert plans != random_plans(space, 12, seed=4)
    assert len({p.key for p in plans}) == 12
    sums = [sum(w for _, w in p.widths()) for p in plans]
    assert sums[-1] > 1.5 * sums[0]
    assert any(s.gone for s in plans[-1].sublayers)


def test_a_real_measurement_sees_the_blocks(build: Any, shape: Shape) -> None:
    found = measure_table(
        build, shape, full_plan(shape), {"kv_groups": (2,), "width": (32,)}, WORK, allow_contended=True
    )
    dense = plan_cost(Plan.of([(2, 32)] * 2), found)
    assert all(dense[m] > 1.5 * found.base[m] > 0 for m in ("prefill", "decode"))
