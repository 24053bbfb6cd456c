"""The table: additive, interpolated, exactly stored, bound to its machine, corrected by whole models."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import MeasurementError, SettingError, SpaceError
from autoprune.hardware import table as tables
from autoprune.hardware import workload as workloads
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.fitting import held_out_error, relative_line, rising
from autoprune.hardware.table import Entry, LatencyTable, calibrate, measure_table, random_plans
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import Decode, Workload
from autoprune.shape import Shape
from autoprune.space import Plan, SublayerPlan, plan_cost

WORK = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)
NOISE = {"prefill": 0.01, "decode": 0.001}


@pytest.fixture
def table() -> LatencyTable:
    """Measured by hand: attention 1 and 2 groups, FFN 8 and 32 neurons."""
    rows = [("attention", 1, 1.0), ("attention", 2, 1.7), ("ffn", 32, 4.1), ("ffn", 8, 1.1)]
    entries = tuple(Entry(k, o, 2, {"prefill": t, "decode": t / 3}, NOISE) for k, o, t in rows)
    return LatencyTable({"prefill": 0.7, "decode": 0.1}, entries, WORK, fingerprint(1), "float32")


def seconds_of(model: Any) -> float:
    """A machine whose time is linear in the parameters inside blocks, with an overhead no sublayer shows."""
    inside = sum(p.numel() for p in model.model.layers.parameters())
    return 0.002 + 1e-6 * inside


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Replaces the clock by `seconds_of`; the numbers of items of each loop are kept."""
    loops: list[int] = []

    def fake(items: Any, *_: Any, **__: Any) -> dict[str, Samples]:
        loops.append(len(items))
        share = {Decode: 0.5}
        return {k: Samples((seconds_of(c.model) * share.get(type(c), 1.0),) * 4) for k, c in items.items()}

    monkeypatch.setattr(workloads, "interleaved", fake)
    return loops


def test_a_plan_costs_base_plus_its_sublayers(table: LatencyTable) -> None:
    cost = plan_cost(Plan.of([(2, 8), (0, 32)]), table)
    assert cost["prefill"] == pytest.approx(0.7 + 1.7 + 1.1 + 4.1)
    assert cost["decode"] == pytest.approx(0.1 + (1.7 + 1.1 + 4.1) / 3)
    assert plan_cost(Plan.of([(0, 0), (0, 0)]), table) == {"prefill": 0.7, "decode": 0.1}


def test_a_correction_keeps_additivity(table: LatencyTable) -> None:
    plan = Plan.of([(2, 8), (1, 32)])
    raw = plan_cost(plan, table)
    corrected = replace(table, correction={"prefill": (0.5, 1.25), "decode": (-0.02, 2.0)})
    cost = plan_cost(plan, corrected)
    assert cost["prefill"] == pytest.approx(0.5 + 1.25 * raw["prefill"])
    assert cost["decode"] == pytest.approx(-0.02 + 2.0 * raw["decode"])


def test_between_options_the_table_interpolates_beyond_it_refuses(table: LatencyTable) -> None:
    def ffn(width: int) -> float:
        return table.sublayer(1, SublayerPlan.of("ffn", width=width))["prefill"]

    assert ffn(14) == pytest.approx(1.1 + 0.25 * 3.0)
    assert ffn(8) == 1.1 and ffn(32) == 4.1 and ffn(0) == 0.0
    for width in (4, 33):
        with pytest.raises(SettingError, match=rf"ffn width={width} is outside .* measured 8..32"):
            ffn(width)
    with pytest.raises(SpaceError, match="prices width only"):
        table.sublayer(0, SublayerPlan.of("ffn", width=8, up_sparsity=50))


def test_noise_never_makes_a_smaller_option_dearer(table: LatencyTable) -> None:
    times = [1.0, 3.0, 2.0, 5.0]
    rows = tuple(
        Entry("ffn", w, 2, dict.fromkeys(NOISE, t), NOISE) for w, t in zip((1, 2, 3, 4), times, strict=True)
    )
    noisy = replace(table, entries=rows)
    assert [noisy.sublayer(0, SublayerPlan.of("ffn", width=w))["decode"] for w in (1, 2, 3, 4)] == [
        1,
        2.5,
        2.5,
        5,
    ]
    assert rising([3.0, 2.0, 1.0]) == [2.0, 2.0, 2.0]
    assert rising([]) == []


def test_json_keeps_every_bit(table: LatencyTable, tmp_path: Path) -> None:
    odd = replace(
        table,
        base_ms={"prefill": 0.1 + 0.2, "decode": 1 / 3},
        correction={"prefill": (1e-17, 1.1), "decode": (0.0, 1.0)},
        error={"prefill": (0.01, 0.02)},
    )
    odd.save(tmp_path / "latency.json")
    back = LatencyTable.load(tmp_path / "latency.json", expect_fingerprint=fingerprint(1))
    assert back == odd
    assert back.to_json() == odd.to_json()


def test_another_fingerprint_is_refused_by_field(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "latency.json")
    foreign = fingerprint(1) | {"cpu": "Abacus"}
    with pytest.raises(SettingError, match=r"latency.json was measured with cpu='.*', here 'Abacus'"):
        LatencyTable.load(tmp_path / "latency.json", foreign)
    with pytest.raises(SettingError, match=r"threads=1, here 2"):
        LatencyTable.load(tmp_path / "latency.json", fingerprint(2))


def test_unreadable_tables_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        LatencyTable.load(tmp_path / "none.json")
    for text in ("", "[]", "{}", '{"schema": 1}', table.to_json().replace('"dtype"', '"type"')):
        with pytest.raises(SettingError, match="not a latency table"):
            LatencyTable.from_json(text)


def test_entries_are_what_one_sublayer_adds(build: Any, shape: Shape, machine: list[int]) -> None:
    found = measure_table(build, shape, [0, 1], [0, 8, 16], WORK)
    assert machine == [2 * (1 + 2 + 3)]  # base, two KV options, three widths (the full ones are added)
    assert [(e.kind, e.option) for e in found.entries] == [
        *(("attention", 1), ("attention", 2), ("ffn", 8), ("ffn", 16), ("ffn", 32))
    ]
    assert found.base == pytest.approx({"prefill": 2.0, "decode": 0.5})  # 2 ms; half of it over two tokens
    for plan in (Plan.of([(2, 32), (1, 16)]), Plan.of([(0, 12), (2, 0)])):
        seconds = seconds_of(build(plan))
        assert plan_cost(plan, found) == pytest.approx({"prefill": 1000 * seconds, "decode": 250 * seconds})
    assert found.dtype == "float32" and found.fingerprint == fingerprint(1) and not found.error


def test_copies_fill_the_cache_and_no_more(shape: Shape, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = replace(shape, blocks=100)  # the head is 4 KiB, width 32 is 6208 bytes
    for cache, blocks in ((None, 100), (1 << 20, 100), (16384, 11), (1, 1)):
        monkeypatch.setattr(tables, "last_level_cache", lambda _, cache=cache: cache)
        assert tables._copies(wide, "ffn", 32, "cpu") == blocks


def test_the_table_and_its_correction_come_from_one_loop(
    build: Any, shape: Shape, machine: list[int]
) -> None:
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], count=6)
    found = measure_table(build, shape, [1, 2], [8, 32], WORK, calibration_plans=plans)
    assert machine == [2 * (1 + 4 + 6)]
    assert found.correction["prefill"] == pytest.approx((0.0, 1.0), abs=1e-6)
    assert found.error["decode"] == pytest.approx((0.0, 0.0), abs=1e-6)


def test_calibration_repairs_a_wrong_table(build: Any, shape: Shape, machine: list[int]) -> None:
    good = measure_table(build, shape, [1, 2], [8, 32], WORK)
    halved = tuple(replace(e, ms={m: v / 2 for m, v in e.ms.items()}) for e in good.entries)
    wrong = replace(good, entries=halved)
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], count=6)
    plan = Plan.of([(1, 8), (2, 32)])
    truth = 1000 * seconds_of(build(plan))
    assert abs(plan_cost(plan, wrong)["prefill"] / truth - 1) > 0.1
    fixed = calibrate(wrong, build, plans)
    assert fixed.correction["prefill"] == pytest.approx((-2.0, 2.0))
    assert plan_cost(plan, fixed)["prefill"] == pytest.approx(truth)
    assert calibrate(fixed, build, plans).correction["prefill"] == pytest.approx((-2.0, 2.0))  # not twice
    assert set(fixed.error) == {"prefill", "decode"}


def test_calibration_is_refused_when_it_tells_nothing(
    build: Any, shape: Shape, table: LatencyTable, machine: list[int]
) -> None:
    with pytest.raises(SettingError, match="at least 4 different plans, not 1"):
        calibrate(table, build, [Plan.of([(2, 32), (2, 32)])] * 5)
    with pytest.raises(SettingError, match="threads"):
        calibrate(
            replace(table, fingerprint=fingerprint(3)), build, random_plans(shape, [0, 1, 2], [0, 8, 32])
        )
    with pytest.raises(MeasurementError, match="all cost the same"):
        relative_line([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(MeasurementError, match="do not rise"):
        relative_line([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])


def test_errors_are_held_out() -> None:
    predicted, measured = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 8.0]
    mean, largest = held_out_error(predicted, measured)
    a, b = relative_line(predicted, measured)
    fitted = [abs(a + b * p - t) / t for p, t in zip(predicted, measured, strict=True)]
    assert largest >= 0.5  # without the last one the line predicts 4 where 8 was measured
    assert sum(fitted) / 4 < mean < largest


def test_random_plans_differ_from_small_to_large(shape: Shape) -> None:
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], seed=3)
    assert plans == random_plans(shape, [0, 1, 2], [0, 8, 32], seed=3)
    assert plans != random_plans(shape, [0, 1, 2], [0, 8, 32], seed=4)
    assert len(plans) == 12 and plans[0].widths() == [(2, 32)] * 2
    sums = [sum(w for _, w in p.widths()) for p in plans[1:]]
    assert max(sums) > 2 * min(sums)


def test_a_real_measurement_sees_the_blocks(build: Any, shape: Shape) -> None:
    found = measure_table(build, shape, [2], [32], WORK, allow_contended=True)
    dense = plan_cost(Plan.of([(2, 32)] * 2), found)
    assert all(dense[m] > 1.5 * found.base[m] > 0 for m in ("prefill", "decode"))
