"""A latency table of every kind of gene, measured from a run's settings to the prices of its plans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from autoprune.kernels import native

from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.hardware import workload
from autoprune.hardware.designs import random_plans
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.timing import Samples
from autoprune.objective import parse_constraint
from autoprune.progress import Progress
from autoprune.run.keeping import KeptDriver
from autoprune.run.latency import (
    as_exported,
    as_given,
    latency_table,
    measured_here,
    named_table,
    option_space,
)
from autoprune.run.parts import open_parts
from autoprune.run.targets import TargetsDriver
from autoprune.space import dense_costs, plan_cost
from tests import tiny
from tests.families import FAMILIES

QUIET = Progress(quiet=True)
WORDS = (
    *("window=16", "sequences=4", "calibration.tokens=256", "quiet=true", "memory_mb=1", "out=unused"),
    *("latency.rounds=5", "latency.prefill_tokens=8", "latency.context=8", "latency.decode_steps=1"),
)
KINDS = {
    "sparsity": (
        *(
            "space=[structured,sparsity]",
            "space.structured.ffn_options=2",
            "space.sparsity.matrices=[up,down]",
        ),
        *("space.sparsity.densities=[50,100]", "space.sparsity.pattern=8x1"),
    ),
    "kv_cache": ("space=[kv_cache]", "space.kv_cache.options=[6,8]"),
    "streaming": ("space=[kv_cache]", "space.kv_cache.policy=streaming", "space.kv_cache.recent=2"),
    "prompts": ("space=[prefill_tokens]", "space.prefill_tokens.keep=[25,50]"),
    "experts": ("space=[experts]", "space.experts.counts=[2,4]", "space.experts.per_token=[1,2]"),
}


def size(model: Any) -> int:
    return sum(int((p != 0).sum()) for p in model.parameters())


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every model runs once, and takes what its parameters say that are not zero; without kernels to compile."""

    def timed(items: Mapping[str, Any], *_: Any, **__: Any) -> dict[str, Samples]:
        for call in items.values():
            call()
        return {n: Samples((1e-3 + 1e-7 * size(call.model),) * 4) for n, call in items.items()}

    monkeypatch.setattr(workload, "interleaved", timed)
    monkeypatch.setattr(native, "missing", lambda: "there is no compiler")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("priced")
    (found / "text.txt").write_text(tiny.text(40_000))
    tiny.save(tiny.llama(blocks=2, noise=0.3), found / "llama")
    tiny.save(FAMILIES["qwen2_moe"].make("untied", vocab_size=tiny.VOCABULARY), found / "moe")
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_gene_is_priced(kind: str, folder: Path, tmp_path: Path) -> None:
    model = folder / ("moe" if kind == "experts" else "llama")
    parts = open_parts(
        compose([f"model={model}", f"data={folder / 'text.txt'}", *WORDS, *KINDS[kind]]), QUIET
    )
    table = latency_table(parts, tmp_path / "latency.json", QUIET)
    assert table is not None and table.error["decode"].plans >= 4
    searched = {g.setting for g in option_space(parts).genes}
    assert searched <= set(table.options)
    for plan in random_plans(option_space(parts), 6, 7):
        milliseconds = 1 + 1e-4 * size(as_exported(parts, plan))
        assert plan_cost(plan, table)["prefill"] == pytest.approx(milliseconds, rel=0.02)
    assert LatencyTable.from_json(table.to_json()) == table
    space = parts.space(table)
    assert {"prefill", "decode"} <= set(space.cost(space.dense))


def test_budgets_on_times_of_a_narrower_model_are_to_the_model_as_given(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Predicted and measured ratios alike; a table without the wider model's times does not serve."""
    settings = [f"model={folder / 'llama'}", f"data={folder / 'text.txt'}", *WORDS, "space=[structured]"]
    parts = open_parts(compose([*settings, "hidden=0.5x", "space.structured.ffn_options=2"]), QUIET)
    table = latency_table(parts, tmp_path / "latency.json", QUIET)
    assert table is not None and parts.given is not None
    space, wide = parts.space(table), size(as_given(parts))
    narrow = size(as_exported(parts, parts.dense_plan()))
    assert wide > 1.5 * narrow and table.given_ms["decode"] == pytest.approx(1 + 1e-4 * wide)
    bound = parse_constraint("decode", "0.8x", dense_costs(space))
    assert bound.bound == pytest.approx(0.8 * table.given_ms["decode"])
    assert space.cost(space.dense)["decode"] == pytest.approx(table.dense_ms["decode"], rel=0.02)
    (found,) = measured_here(parts, {"dense": parts.dense_plan()}, "dense", QUIET, "measuring").values()
    assert found.decode_ratio == pytest.approx((1 + 1e-4 * narrow) / (1 + 1e-4 * wide))
    shared: Any = SimpleNamespace(space=space, targets=(), spec=None)
    monkeypatch.setattr(TargetsDriver, "__init__", lambda self, shared: None)
    assert KeptDriver(shared, (), lambda _: space, 0).dense["decode"] == table.given_ms["decode"]
    replace(table, given_ms={}).save(tmp_path / "narrow.json")
    with pytest.raises(SettingError, match=r"no times of the model as given; make it with hidden=0.5x"):
        named_table(parts, tmp_path / "narrow.json")


def test_without_a_narrower_width_there_is_no_other_model(folder: Path, tmp_path: Path) -> None:
    settings = [f"model={folder / 'llama'}", f"data={folder / 'text.txt'}", *WORDS, "space=[kv_cache]"]
    parts = open_parts(compose([*settings, "hidden=1x"]), QUIET)
    table = latency_table(parts, tmp_path / "latency.json", QUIET)
    assert as_given(parts) is None and table is not None and table.given_ms == {}
