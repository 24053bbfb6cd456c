"""Runs whose checkpoints are in int8: what is measured, what is reported, and where it is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from autoprune.kernels import native
from autoprune.kernels.selector import RoundedLinear, Selector

from autoprune.errors import AutopruneError, SettingError
from autoprune.models.llama import LlamaAdapter
from autoprune.run import latency
from autoprune.run.int8 import SETTING, check_int8, in_int8
from autoprune.shape import full_plan
from tests import tiny


@pytest.fixture(autouse=True)
def _kernels() -> None:
    if native.missing():
        pytest.skip(native.missing())


def parts_with(int8: bool, device: str = "cpu", kernels: bool = True, metric: str = "kl") -> Any:
    """As much of a run's parts as is asked here."""
    model = tiny.llama(blocks=1)
    settings = {
        "latency": SimpleNamespace(kernels=kernels),
        "export": SimpleNamespace(int8=int8),
        "threads": 1,
    }
    return SimpleNamespace(
        cfg=SimpleNamespace(**settings),
        adapter=LlamaAdapter(model),
        device=torch.device(device),
        loaded=SimpleNamespace(dtype=model.dtype),
        evaluators=[SimpleNamespace(metrics=(metric,))],
        options=dict,
        build=lambda plan, ladders: tiny.llama(blocks=1),
    )


def test_what_is_exported_in_int8_is_measured_in_int8(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Selector, "_timed", lambda self, layer, tokens: 2.0)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    for int8, count in ((True, 7), (False, 0)):
        parts = parts_with(int8)
        modules = latency.as_exported(parts, full_plan(parts.adapter.shape)).modules()
        assert sum(isinstance(m, RoundedLinear) for m in modules) == count
        assert (
            latency.facts(parts).get("weights") == ("int8" if int8 else None) and in_int8(parts.cfg) is int8
        )
    assert not in_int8(SimpleNamespace()), "a run of before"  # type: ignore[arg-type]


def test_it_is_refused_where_nothing_would_run_or_be_told() -> None:
    check_int8(parts_with(True))
    for given, says in (
        ({"device": "cuda"}, "kernels for the CPU only; leave device=cuda out"),
        ({"kernels": False}, "latency.kernels=false measures without any"),
        ({"metric": "perplexity"}, "add divergence to evaluator"),
    ):
        with pytest.raises(AutopruneError, match=f"^{SETTING}.*{says}"):
            check_int8(parts_with(True, **given))  # type: ignore[arg-type]


def test_a_checkpoint_in_int8_is_not_trained_on_silently(tmp_path: Path) -> None:
    from autoprune.progress import Progress
    from autoprune.run.recover import recover_checkpoint

    folder = tmp_path / "small"
    (folder / "int8").mkdir(parents=True)
    (folder / "int8" / "model.safetensors").touch()
    (folder / "autoprune_plan.json").write_text(full_plan(LlamaAdapter(tiny.llama(blocks=1)).shape).to_json())
    with pytest.raises(SettingError, match="is in int8, which training would leave"):
        recover_checkpoint(folder, tmp_path / "to", SimpleNamespace(), "", Progress(quiet=True))  # type: ignore[arg-type]
