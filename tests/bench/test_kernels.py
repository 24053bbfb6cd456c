"""The benchmarks of kernels, on sizes that take no time; what they measure is checked first."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
import torch
from autoprune.kernels import native
from autoprune.kernels.linear import SparseLinear
from autoprune.kernels.selector import Selector

from autoprune.bench import decode, kernels
from autoprune.errors import MeasurementError, SettingError
from autoprune.hardware import timing
from tests import tiny


@pytest.fixture(autouse=True)
def _kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.missing():
        pytest.skip(native.missing())
    real = timing.interleaved

    def patient(items: Any, rounds: int, seed: int, threads: int) -> Any:
        return real(items, 2, seed, threads, allow_contended=True)

    for module in (kernels, decode):
        monkeypatch.setattr(module, "interleaved", patient)


def test_single_matrices(tmp_path: Any, capsys: Any) -> None:
    to = tmp_path / "k.md"
    kernels.main(["--sizes", "64x128", "--to", str(to)])
    table = to.read_text()
    assert "autoprune bench kernels --sizes 64x128" in table
    for row in ("reading alone", "F.linear", "ours", "8x2 blocks, 90 % gone", "bitmap, 50 % gone"):
        assert f"| 64x128 | {row} |" in table
    assert "| 64x128 | 70 % |" in table and "| 64x128 | none, in fp32 |" in table
    assert "| 64x128 | torch, dynamically quantised |" in table and "| 64x128 | our kernel |" in table


def test_several_threads_are_used_and_shown(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before, seen = torch.get_num_threads(), []
    real = SparseLinear.forward
    monkeypatch.setattr(
        SparseLinear, "forward", lambda self, x: (seen.append(torch.ops.autoprune.team()), real(self, x))[1]
    )
    try:
        kernels.main(["--sizes", "64x128", "--threads", "2", "--to", str(tmp_path / "k.md")])
    finally:
        torch.set_num_threads(before)
    table = (tmp_path / "k.md").read_text()
    assert "1 and 2 threads of the kernels" in table and "| us on 2 |" in table and {1, 2} == set(seen)
    assert all(f"| 64x128 | {row} |" in table for row in ("ours", "8x2 blocks, 50 % gone", "reading alone"))
    with pytest.raises(SettingError, match="--threads 0 must be at least 1"):
        kernels.main(["--threads", "0"])
    monkeypatch.setattr(torch.ops.autoprune, "team", lambda: 1)
    with pytest.raises(MeasurementError, match="run on 1 of 2 threads"):
        kernels.main(["--threads", "2", "--sizes", "64x128"])
    torch.set_num_threads(before)


def test_a_whole_model(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Selector, "_timed", lambda *_: 2.0)
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path))
    to = tmp_path / "d.md"
    small = ["--hidden", "64", "--ffn", "128", "--blocks", "2", "--context", "8"]
    decode.main([*small, "--to", str(to)])
    assert (
        "| transformers, bf16 |" in to.read_text()
        and "| 8x2 blocks, 70 % gone, as loaded |" in to.read_text()
        and "| dense in int8, as loaded |" in to.read_text()
    )


def test_the_quality_of_the_same_pattern(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "text.txt").write_text(tiny.text())
    model, to = tiny.save(tiny.llama(1, noise=0.1), tmp_path / "trained"), tmp_path / "q.md"
    given = [
        "--quality",
        str(model),
        "--data",
        str(tmp_path / "text.txt"),
        "--tokens",
        "1024",
        "--windows",
        "2",
    ]
    decode.main([*given, "--to", str(to)])
    rows = [
        line.split(" | ") for line in to.read_text().splitlines() if line.startswith(("| dense", "| 8x2"))
    ]
    kls = [float(row[1]) for row in rows]
    assert [row[0] for row in rows] == ["| dense", *(f"| 8x2 blocks, {g} % gone" for g in (50, 70, 90))]
    assert (
        abs(kls[0]) < 1e-4
        and kls == sorted(kls)
        and kls[1] > 0.001
        and "trained, a trained model" in to.read_text()
    )


def test_models_that_are_compared_are_the_same_model() -> None:
    options = argparse.Namespace(hidden=64, ffn=128, blocks=2)
    dense = decode._model(options)
    sparse = decode._mapped(dense, decode._sparse(50))
    layers = [m for m in sparse.modules() if isinstance(m, SparseLinear)]
    assert len(layers) == 2 * 7 and all(0.3 < m.kept / (m.rows * m.columns) < 0.7 for m in layers)
    for name, module in dense.model.layers.named_modules():
        if isinstance(module, torch.nn.Linear):
            with torch.no_grad():
                module.weight.copy_(sparse.model.layers.get_submodule(name).to_dense())
    ids = torch.arange(9)[None]
    with torch.inference_mode():
        wanted, found = (m(ids, use_cache=False).logits.float() for m in (dense, sparse))
    assert float((wanted - found).abs().max()) < 0.03 * float(wanted.abs().max())


def test_a_kernel_that_is_wrong_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SparseLinear, "forward", lambda self, x: x.new_zeros(*x.shape[:-1], self.rows))
    with pytest.raises(MeasurementError, match="blocks 64x64 with 1 tokens is off"):
        kernels.sparse(kernels.matrix(64, 64, "blocks", 50), "blocks")


@pytest.mark.parametrize("text", ["64", "64x", "ax3", "0x4", "1x2x3"])
def test_sizes_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(SettingError, match=f"--sizes {text} must be like"):
        kernels.sizes_of(text)
