"""The table: additive, interpolated, exactly stored, bound to its machine, corrected by whole models."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.errors import MeasurementError, SettingError, SpaceError
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.fitting import HeldOut, additive, held_out, relative_line
from autoprune.hardware.table import Entry, LatencyTable
from autoprune.hardware.workload import Workload
from autoprune.run.profile import describe
from autoprune.shape import Shape
from autoprune.space import Plan, SublayerPlan, plan_cost

WORK = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)
NOISE = {"prefill": 0.01, "decode": 0.001}
OPTIONS = {"kv_groups": (0, 1, 2), "width": (0, 8, 32)}


@pytest.fixture
def table(shape: Shape) -> LatencyTable:
    """Measured by hand: attention 1 and 2 groups, FFN 8 and 32 neurons."""
    rows: list[Any] = [("attention", "kv_groups", 1, 1.0), ("attention", "kv_groups", 2, 1.7)]
    rows += [("ffn", "width", 8, 1.1), ("ffn", "width", 32, 4.1)]
    entries = tuple(Entry(k, n, o, {"prefill": t, "decode": t / 3}, NOISE) for k, n, o, t in rows)
    base = {"prefill": 0.7, "decode": 0.1}
    return LatencyTable(base, entries, WORK, fingerprint(1), asdict(shape), "float32", OPTIONS)


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
    with pytest.raises(SpaceError, match="does not price up_sparsity of"):
        table.sublayer(0, SublayerPlan.of("ffn", width=8, up_sparsity=50))


def test_parts_are_found_again_and_never_fall_below_zero() -> None:
    counts = [[1, 2, 0], [1, 0, 3], [1, 1, 1], [1, 4, 2], [1, 0, 0]]
    parts = [0.5, 2.0, 0.25]
    measured = [sum(c * p for c, p in zip(row, parts, strict=True)) for row in counts]
    assert additive(counts, measured) == pytest.approx(parts, rel=1e-4)
    falling = additive([[1, 0], [1, 1], [1, 2]], [3.0, 2.0, 1.0])
    assert falling[1] == 0.0 and 1.0 < falling[0] < 3.0
    signed = additive([[1, 0], [1, 1], [1, 2]], [3.0, 2.0, 1.0], signed=[False, True])
    assert signed == pytest.approx([3.0, -1.0], rel=1e-4)
    rising = additive([[1, 1, 0], [1, 0, 1], [1, 0, 0]], [3.0, 2.0, 1.0], after=[False, False, True])
    assert rising[2] >= rising[1] > 0
    assert additive([[1, 0], [1, 0]], [2.0, 2.0]) == pytest.approx([2.0, 0.0])


@pytest.mark.parametrize("seed", [108, 173, 208])
def test_parts_are_at_least_zero_to_the_last_bit(seed: int) -> None:
    """The solver's own solutions of these were below it by rounding, and no such table could be read again."""
    rng = np.random.default_rng(seed)
    amounts = rng.integers(0, 4, (14, 9)).astype(float)
    parts = np.where(rng.random(9) < 0.5, 0, rng.random(9))
    measured = amounts @ parts * (1 + 0.05 * rng.standard_normal(14)) + 0.01
    assert min(additive(amounts.tolist(), measured.tolist())) >= 0


def test_a_base_below_zero_by_rounding_is_read(table: LatencyTable) -> None:
    rounded = replace(table, base_ms={"prefill": -2e-18, "decode": 0.1})
    assert LatencyTable.from_json(rounded.to_json()) == rounded
    with pytest.raises(SettingError, match="not a latency table"):
        LatencyTable.from_json(replace(table, base_ms={"prefill": -0.1, "decode": 0.1}).to_json())


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


def test_a_gpu_s_table_says_what_was_replayed(table: LatencyTable) -> None:
    assert table.graphs == () and "CUDA graphs" not in describe(table)
    table = replace(table, fingerprint={"gpu": "a GPU"}, graphs=("prefill",))
    again = LatencyTable.from_json(table.to_json())
    assert again == table and "timed prefill replayed as CUDA graphs, decode eagerly" in describe(again)


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
    with pytest.raises(SettingError, match=r"no entry for width=4; measured: 8..32"):
        table.check_model(shape, "float32", options | {"width": (0, 4, 32)})
    masked = options | {"up.8x2": (50, 100)}
    with pytest.raises(SettingError, match=r"no entry for up.8x2=50; measured: none"):
        table.check_model(shape, "float32", masked)
    table.check_model(shape, "float32", options | {"up.8x2": (100,)})
    other = replace(table, settled={"kv_sink": 4})
    with pytest.raises(SettingError, match="measured with kv_sink=4, the space has 2"):
        other.check_model(shape, "float32", options, {"kv_sink": 2})


def test_unreadable_tables_are_refused(table: LatencyTable, tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="cannot be read"):
        LatencyTable.load(tmp_path / "none.json")
    whole = table.to_json()
    broken = [whole.replace('"dtype"', '"type"'), whole[:-20], whole.replace('"schema": 4', '"schema": 3')]
    broken += [whole.replace('"decode": 0.1,', '"decode": NaN,'), whole.replace("4.1", "-4.1")]
    for text in ("", "[]", "{}", '{"schema": 4}', *broken):
        assert text != whole
        with pytest.raises(SettingError, match="not a latency table"):
            LatencyTable.from_json(text)


def test_a_correction_that_tells_nothing_changes_nothing_and_a_falling_one_is_refused() -> None:
    assert relative_line([2.0, 2.0, 2.0], [3.0, 3.0, 3.0]) == pytest.approx((1.0, 1.0))
    assert relative_line([2.0, 2.02, 2.0], [3.03, 3.0, 2.97])[1] == pytest.approx(1.0, abs=0.2)  # noise only
    assert relative_line([1.0, 2.0, 4.0], [2.5, 4.5, 8.5]) == pytest.approx((0.5, 2.0), rel=0.03)
    with pytest.raises(MeasurementError, match="do not rise"):
        relative_line([1.0, 2.0, 3.0], [3.0, 2.0, 1.0])


def test_errors_are_held_out() -> None:
    found = held_out([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 8.0])
    assert (found.plans, found.mean, found.largest, found.rank) == pytest.approx((4, 0.125, 0.5, 1.0))
    assert found.spread == pytest.approx(7.0)
    assert held_out([2.0, 1.0, 3.0], [1.0, 2.0, 3.0]).rank == pytest.approx(0.5)
