"""The table: additive, interpolated, exactly stored, bound to its machine, corrected by whole models."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import MeasurementError, SettingError, SpaceError
from autoprune.hardware import workload as workloads
from autoprune.hardware.designs import probes, random_plans
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.fitting import HeldOut, additive, held_out, left_out, relative_line
from autoprune.hardware.measuring import measure_table
from autoprune.hardware.table import Entry, LatencyTable
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import Decode, Workload
from autoprune.shape import Shape
from autoprune.space import Plan, SublayerPlan, plan_cost

WORK = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)
NOISE = {"prefill": 0.01, "decode": 0.001}


@pytest.fixture
def table(shape: Shape) -> LatencyTable:
    """Measured by hand: attention 1 and 2 groups, FFN 8 and 32 neurons."""
    rows = [("attention", 1, 1.0), ("attention", 2, 1.7), ("ffn", 32, 4.1), ("ffn", 8, 1.1)]
    entries = tuple(Entry(k, o, {"prefill": t, "decode": t / 3}, NOISE) for k, o, t in rows)
    base = {"prefill": 0.7, "decode": 0.1}
    return LatencyTable(base, entries, WORK, fingerprint(1), asdict(shape), "float32")


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
        share = {Decode: 0.25}
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


def test_parts_are_found_again_and_never_fall_below_zero() -> None:
    counts = [[1, 2, 0], [1, 0, 3], [1, 1, 1], [1, 4, 2], [1, 0, 0]]
    parts = [0.5, 2.0, 0.25]
    measured = [sum(c * p for c, p in zip(row, parts, strict=True)) for row in counts]
    assert additive(counts, measured) == pytest.approx(parts)
    falling = additive([[1, 0], [1, 1], [1, 2]], [3.0, 2.0, 1.0])
    assert falling[1] == 0.0 and 1.0 < falling[0] < 3.0
    assert additive([[1, 0], [1, 0]], [2.0, 2.0]) == pytest.approx([2.0, 0.0])


def test_json_keeps_every_bit(table: LatencyTable, tmp_path: Path) -> None:
    odd = replace(
        table,
        base_ms={"prefill": 0.1 + 0.2, "decode": 1 / 3},
        correction={"prefill": (1e-17, 1.1), "decode": (0.0, 1.0)},
        error={"prefill": HeldOut(24, 0.01, 1 / 3, 0.99)},
        dense_ms={"prefill": 1 / 7},
    )
    odd.save(tmp_path / "latency.json")
    back = LatencyTable.load(tmp_path / "latency.json")
    assert back == odd
    assert back.to_json() == odd.to_json()


def test_another_machine_is_told_by_field(table: LatencyTable) -> None:
    assert table.foreign(fingerprint(1)) == ""
    assert table.foreign(fingerprint(1) | {"cpu": "Abacus"}).endswith("here 'Abacus'")
    assert table.foreign(fingerprint(2)) == "threads=1, here 2"


def test_another_model_and_missing_options_are_refused(table: LatencyTable, shape: Shape) -> None:
    options = {"kv_groups": (0, 1, 2), "width": (0, 8, 16, 32)}
    table.check_model(shape, "float32", options)
    with pytest.raises(SettingError, match=r"another model \(blocks=2, here 3\)"):
        table.check_model(replace(shape, blocks=3), "float32", options)
    with pytest.raises(SettingError, match=r"another model \(dtype='float32', here 'bfloat16'\)"):
        table.check_model(shape, "bfloat16", options)
    with pytest.raises(SettingError, match=r"no entry for ffn width=4; measured: 8..32"):
        table.check_model(shape, "float32", options | {"width": (0, 4, 32)})
    bare = replace(table, entries=tuple(e for e in table.entries if e.kind == "ffn"))
    with pytest.raises(SettingError, match=r"no entry for attention kv_groups=1; measured: none"):
        bare.check_model(shape, "float32", options)


def test_unreadable_tables_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        LatencyTable.load(tmp_path / "none.json")
    whole = table.to_json()
    broken = [whole.replace('"dtype"', '"type"'), whole[:-20], whole.replace('"schema": 2', '"schema": 1')]
    broken += [whole.replace('"decode": 0.1,', '"decode": NaN,'), whole.replace("4.1", "-4.1")]
    for text in ("", "[]", "{}", '{"schema": 2}', *broken):
        assert text != whole
        with pytest.raises(SettingError, match="not a latency table"):
            LatencyTable.from_json(text)


def test_entries_are_what_one_sublayer_adds(build: Any, shape: Shape, machine: list[int]) -> None:
    found = measure_table(build, shape, [0, 1], [0, 8, 16], WORK)
    assert machine == [
        2 * (1 + 3 + 4)
    ]  # dense, two KV options, three widths (the full ones are added), two zeros
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


def test_probes_hold_every_option_among_others(shape: Shape) -> None:
    plans = probes(replace(shape, blocks=12), [1, 2], [0, 8, 16])
    assert list(plans) == [
        *("dense", "attention 0", "attention 1", "attention 2"),
        *("ffn 0", "ffn 8", "ffn 16", "ffn 32"),
    ]
    assert plans["dense"].widths() == [(2, 32)] * 12
    assert all(w == 8 for _, w in plans["ffn 8"].widths()) and any(g for g, _ in plans["ffn 8"].widths())
    assert len({w for _, w in plans["attention 1"].widths()}) > 1
    assert [g > 0 for g, _ in plans["attention 0"].widths()] == [False, True] * 6


def test_the_table_and_its_correction_come_from_one_loop(
    build: Any, shape: Shape, machine: list[int]
) -> None:
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], 10, seed=0)
    held = [p for p in random_plans(shape, [0, 1, 2], [0, 8, 32], 5, seed=1) if p not in plans]
    found = measure_table(build, shape, [1, 2], [8, 32], WORK, correction_plans=plans, held_out_plans=held)
    assert machine == [2 * (1 + 3 + 3 + len(plans) + len(held))]
    assert found.correction["prefill"] == pytest.approx((0.0, 1.0), abs=1e-2)
    assert found.error["decode"].plans == len(held) > 0
    assert found.error["decode"].largest == pytest.approx(0.0, abs=1e-3)
    with pytest.raises(SettingError, match="one of those that the correction is fitted to"):
        measure_table(build, shape, [1], [8], WORK, correction_plans=plans, held_out_plans=plans[:1])
    with pytest.raises(SettingError, match="at least 4 different plans, not 1"):
        measure_table(build, shape, [1], [8], WORK, correction_plans=plans[:1] * 5)


def test_the_correction_mends_what_whole_models_cost_otherwise(
    build: Any, shape: Shape, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that makes every model of the correction half as dear again, and 3 ms on top."""
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], 10, seed=0)

    def fake(items: Any, *_: Any, **__: Any) -> dict[str, Samples]:
        def of(name: str, call: Any) -> Samples:
            seconds = seconds_of(call.model)
            return Samples((0.003 + 1.5 * seconds if "correction" in name else seconds,) * 4)

        return {name: of(name, call) for name, call in items.items()}

    monkeypatch.setattr(workloads, "interleaved", fake)
    found = measure_table(build, shape, [1, 2], [8, 32], WORK, correction_plans=plans)
    assert found.correction["prefill"] == pytest.approx((3.0, 1.5), rel=1e-2)
    plan = Plan.of([(1, 8), (2, 32)])
    truth = 1000 * (0.003 + 1.5 * seconds_of(build(plan)))
    assert plan_cost(plan, found)["prefill"] == pytest.approx(truth, rel=1e-3)


def test_a_correction_that_tells_nothing_is_refused() -> None:
    with pytest.raises(MeasurementError, match="all cost the same"):
        relative_line([1.0, 1.0, 1.0], [1.0, 2.0, 3.0])
    with pytest.raises(MeasurementError, match="do not rise"):
        relative_line([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])


def test_errors_are_held_out() -> None:
    predicted, measured = [1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 8.0]
    found = held_out(left_out(predicted, measured), measured)
    a, b = relative_line(predicted, measured)
    fitted = held_out([a + b * p for p in predicted], measured)
    assert found.largest >= 0.5  # without the last one the line predicts 4 where 8 was measured
    assert fitted.mean < found.mean < found.largest
    assert held_out([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]).rank == pytest.approx(0.5)


def test_random_plans_go_from_small_to_large_with_sublayers_gone(shape: Shape) -> None:
    shape = replace(shape, blocks=12)
    plans = random_plans(shape, [0, 1, 2], [0, 8, 32], 12, seed=3)
    assert plans == random_plans(shape, [0, 1, 2], [0, 8, 32], 12, seed=3)
    assert plans != random_plans(shape, [0, 1, 2], [0, 8, 32], 12, seed=4)
    assert len({p.key for p in plans}) == 12
    sums = [sum(w for _, w in p.widths()) for p in plans]
    assert sums[-1] > 2 * sums[0]
    assert any(s.gone for s in plans[-1].sublayers)


def test_a_real_measurement_sees_the_blocks(build: Any, shape: Shape) -> None:
    found = measure_table(build, shape, [2], [32], WORK, allow_contended=True)
    dense = plan_cost(Plan.of([(2, 32)] * 2), found)
    assert all(dense[m] > 1.5 * found.base[m] > 0 for m in ("prefill", "decode"))
