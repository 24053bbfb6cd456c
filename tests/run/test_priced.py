"""A latency table of every kind of gene, measured from a run's settings to the prices of its plans."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from autoprune.kernels import native

from autoprune.config import compose
from autoprune.hardware import workload
from autoprune.hardware.designs import random_plans
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.timing import Samples
from autoprune.progress import Progress
from autoprune.run.latency import as_exported, latency_table, option_space
from autoprune.run.parts import open_parts
from autoprune.space import plan_cost
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
