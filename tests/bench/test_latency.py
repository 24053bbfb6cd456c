"""The tables of latency benchmarks: errors of all kinds together, and how far a target was missed."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune.bench import targets
from autoprune.bench.latency import KINDS, describe, pooled
from autoprune.bench.targets import off
from autoprune.config import compose
from autoprune.hardware.fitting import HeldOut
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.workload import Workload
from autoprune.shape import Shape

SHAPE = Shape("llama", 2, 16, 4, 2, 4, 32, 64, tied=True, norm_params=16)


def table(mean: float, rank: float, **facts: str) -> LatencyTable:
    times = {"prefill": 2.0, "decode": 0.5}
    error = dict.fromkeys(times, HeldOut(16, mean, 3 * mean, rank, 1.0))
    machine = {"cpu": "Abacus 9", "torch": "2", **facts}
    given = {"kv_groups": (2,), "width": (32,)}
    found = LatencyTable(times, (), Workload(), machine, asdict(SHAPE), "float32", given)
    return LatencyTable(**{**vars(found), "error": error, "dense_ms": times, "dense_wall_ms": times})


def test_all_kinds_together() -> None:
    rows = [
        HeldOut(10, 0.01, 0.02, 0.999, 2.0),
        HeldOut(20, 0.03, 0.05, 0.99, 1.0),
        HeldOut(10, 0.03, 0.04, 0.1, 0.05),
    ]
    assert pooled(rows) == HeldOut(40, pytest.approx(0.025), 0.05, 0.99, 1.0)  # type: ignore[arg-type]
    text = describe({"structured": table(0.01, 0.999), "sparsity": table(0.02, 0.99, kernels="AVX512")})
    assert "| sparsity | decode | 16 | 2.00% | 6.00% | 0.9900 |" in text
    assert "| all | prefill | 32 | 1.50% | 6.00% | 0.9900 (the lowest) |" in text
    assert text.endswith("On Abacus 9, torch 2, kernels: AVX512.")


def test_classifiers_have_no_decode() -> None:
    whole = table(0.01, 0.999)
    text = describe({"tokens": replace(whole, error={"prefill": whole.error["prefill"]})})
    assert "| all | prefill |" in text and "| all | decode |" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_settings_that_are_there(kind: str) -> None:
    model, space = KINDS[kind]
    assert list(compose([f"model={model}", "out=unused", *space]).space)


def test_how_far_a_target_was_missed() -> None:
    measured: Any = SimpleNamespace(decode_ratio=0.63, prefill_ratio=0.57)
    assert off("decode 0.6x", measured) == pytest.approx(0.05)
    assert off("prefill 0.6x", measured) == pytest.approx(-0.05)
    assert off("params 0.5x", measured) is None


def test_random_targets_of_a_folder_stay_what_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter([[("decode", "0.5x")], [("decode", "0.6x")]])
    monkeypatch.setattr(targets, "_drawn", lambda options: next(drawn))
    options = targets._parse(["--work", str(tmp_path), "--random", "1"])
    assert targets.random_targets(options) == targets.random_targets(options) == [("decode", "0.5x")]
    options.seed = 1
    assert targets.random_targets(options) == [("decode", "0.6x")]
