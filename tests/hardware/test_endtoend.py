"""Whole models against each other."""

from __future__ import annotations

from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.hardware.endtoend import Measured, faster, measure_models, summary
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import Workload
from autoprune.space import Plan

WORK = Workload(prefill_tokens=8, context=8, decode_steps=2, rounds=5)


def test_fewer_blocks_are_faster_than_the_reference(build: Any) -> None:
    models = {"dense": build(Plan.of([(2, 32)] * 2)), "nothing": build(Plan.of([(0, 0)] * 2))}
    found = measure_models(models, WORK, reference="dense", allow_contended=True)
    assert found["dense"].prefill_ratio == found["dense"].decode_ratio_high == 1.0
    for metric in ("prefill", "decode"):
        low, high = found["nothing"].interval(metric)
        assert 0 < low <= getattr(found["nothing"], f"{metric}_ms") <= high
        ratio = getattr(found["nothing"], f"{metric}_ratio")
        assert 0 < getattr(found["nothing"], f"{metric}_ratio_low") <= ratio < 0.8


def test_ratios_are_paired_round_by_round() -> None:
    drift = (1.0, 2.0, 4.0, 8.0, 16.0)
    reference = dict.fromkeys(("prefill", "decode"), Samples(drift))
    half = dict.fromkeys(("prefill", "decode"), Samples(tuple(v / 2 for v in drift)))
    found = summary(half, reference)
    assert (found.prefill_ratio_low, found.prefill_ratio, found.prefill_ratio_high) == (0.5, 0.5, 0.5)
    assert found.prefill_ms == 2000.0
    assert summary(half).decode_ratio is None


def test_faster_needs_intervals_apart() -> None:
    a, b, c = (
        Measured(1, 0.9, 1.1, 1, 0.9, 1.3),
        Measured(1.4, 1.2, 1.5, 1.4, 1.2, 1.5),
        Measured(1, 1, 1, 1, 1, 1),
    )
    assert faster(a, b, "prefill") and not faster(b, a, "prefill")
    assert not faster(a, b, "decode")
    assert not faster(c, c, "decode")
    with pytest.raises(SettingError, match="did you mean 'decode'"):
        faster(a, b, "decod")


def test_an_unknown_reference_is_refused_before_measuring(build: Any) -> None:
    with pytest.raises(SettingError, match="reference='dens'.*did you mean 'dense'"):
        measure_models({"dense": build(Plan.of([(2, 32)] * 2))}, WORK, reference="dens")
