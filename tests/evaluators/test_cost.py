"""Costs of built models against torch's own counters and the process's memory."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cache import Cache
from autoprune.evaluation import Context, Scores
from autoprune.forward import BuiltModel
from autoprune.hardware.energy import joules
from autoprune.hardware.memory import peak_bytes
from autoprune.models.llama import LlamaAdapter
from autoprune.shape import AnalyticCosts, decode_flops
from autoprune.space import Plan, plan_cost
from evaluators.cost import Cost, disk_bytes
from tests import tiny

PLANS = [[(2, 48)] * 3, [(1, 8), (2, 0), (0, 24)]]
CONTEXT = 20


def built(pairs: list[tuple[int, int]]) -> tuple[Any, LlamaAdapter, Plan]:
    """A physically smaller model of the first units."""
    adapter = LlamaAdapter(tiny.llama())
    plan = Plan.of(pairs)

    def weights(block: int, sublayer: Any) -> Any:
        count = int(sublayer.get(adapter.unit_setting(sublayer.kind)))
        return adapter.units(sublayer.kind).prefix(adapter.weights(block, sublayer.kind), count)

    model = adapter.install(plan, weights, torch.float32)
    model.set_attn_implementation("eager")  # whose products the counter sees on every device
    return model, adapter, plan


def scored(model: Any, adapter: LlamaAdapter, plan: Plan, tmp_path: Path) -> dict[str, float]:
    evaluator = Cost(context=CONTEXT)
    evaluator.bind(Context(lambda x: x, Cache(tmp_path / "c"), "d", shape=adapter.shape))
    found = evaluator.evaluate(BuiltModel(model), [plan])[0]
    assert isinstance(found, Scores)
    return dict(found.metrics)


@pytest.mark.parametrize("pairs", PLANS)
def test_flops_by_phase_are_those_that_are_counted(pairs: list[tuple[int, int]], tmp_path: Path) -> None:
    model, adapter, plan = built(pairs)
    ids = tiny.token_ids((1, CONTEXT))
    with torch.inference_mode():
        with FlopCounterMode(display=False) as prefill:
            cache = model(input_ids=ids, use_cache=True, logits_to_keep=0).past_key_values
        with FlopCounterMode(display=False) as decode:
            model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
    metrics = scored(model, adapter, plan, tmp_path)
    assert metrics["flops_prefill"] == prefill.get_total_flops()
    assert metrics["flops_decode"] == decode.get_total_flops()


@pytest.mark.parametrize("pairs", PLANS)
def test_the_cache_has_the_bytes_that_are_told(pairs: list[tuple[int, int]], tmp_path: Path) -> None:
    model, adapter, plan = built(pairs)
    with torch.inference_mode():
        cache = model(input_ids=tiny.token_ids((1, CONTEXT)), use_cache=True).past_key_values
    held = [layer for layer in cache.layers if getattr(layer, "keys", None) is not None]
    told = scored(model, adapter, plan, tmp_path)["kv_bytes_context"]
    values = sum(layer.keys.numel() + layer.values.numel() for layer in held)
    assert told == values * adapter.shape.bytes_per_value


def test_zeros_are_not_counted_and_files_are_weighed(tmp_path: Path) -> None:
    model, adapter, plan = built(PLANS[1])
    whole = sum(p.numel() for p in model.parameters())
    before = scored(model, adapter, plan, tmp_path)
    model.model.layers[0].mlp.up_proj.weight.data[2] = 0.0
    after = scored(model, adapter, plan, tmp_path)
    assert before["params_nonzero"] == whole and before["params_nonzero"] - after["params_nonzero"] == 32
    assert 0 <= after["disk_bytes"] - 4 * whole < 8192
    assert model.dtype is torch.float32 and disk_bytes(model, torch.bfloat16) < 0.6 * after["disk_bytes"]
    assert plan_cost(plan, AnalyticCosts(adapter.shape, 1))["params_total"] == whole


def test_a_window_bounds_what_a_decoded_token_looks_at() -> None:
    from dataclasses import replace

    _, adapter, plan = built(PLANS[0])
    short = replace(adapter.shape, windows=(4,) * 3)
    assert decode_flops(adapter.shape, plan, 20) - decode_flops(short, plan, 20) == 3 * 4 * 32 * (20 - 3)


def test_a_peak_is_that_of_what_lives_at_a_time() -> None:
    module = torch.nn.Linear(10, 10, bias=False)

    def run() -> None:
        for _ in range(3):
            torch.ones(1000).add(1)  # two of 4000 bytes at a time, never six

    assert peak_bytes(module, run) == 400 + 8000


MEMORY = """
import resource, sys, torch
from autoprune.hardware.memory import peak_bytes
torch.set_num_threads(1)
torch.ones(64, 64) @ torch.ones(64, 64)
with open("/proc/self/statm") as file:
    before = int(file.read().split()[1]) * resource.getpagesize()
layers = [torch.nn.Linear(2048, 2048, bias=False) for _ in range(6)]
model = torch.nn.Sequential(*layers)
def run():
    with torch.inference_mode():
        model(torch.ones(4096, 2048))
run()
with open("/proc/self/status") as file:  # ru_maxrss would be the parent's where that was larger
    peak = next(int(line.split()[1]) for line in file if line.startswith("VmHWM"))
grown = 1024 * peak - before
print(grown / peak_bytes(model, run))
"""


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="needs /proc")
def test_the_peak_is_the_growth_of_the_process(root: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], cwd=root, capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(1.0, abs=0.05)


def test_energy_is_read_where_there_is_a_counter_and_absent_elsewhere(tmp_path: Path) -> None:
    assert joules(lambda: None, tmp_path) is None or torch.cuda.is_available()
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    (zone / "energy_uj").write_text("0")
    (tmp_path / "intel-rapl:0:0").mkdir()  # a part of the package: counting it too would count twice

    def run() -> None:
        import time

        time.sleep(0.01)
        (zone / "energy_uj").write_text(str(int((zone / "energy_uj").read_text()) + 3_000_000))

    assert joules(run, tmp_path) == pytest.approx(3.0)
