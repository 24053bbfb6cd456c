"""Every kernel on every instruction set of this processor against float64, and what happens without a compiler."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from autoprune.kernels import build, native
from autoprune.kernels.dense import DenseLinear
from autoprune.kernels.int8 import Int8Linear, rounded
from autoprune.kernels.linear import SparseLinear
from autoprune.kernels.packing import bitmap_of, blocks_of
from torch import Tensor

from autoprune.cache import Cache
from autoprune.errors import KernelError
from autoprune.patterns import pattern_of
from autoprune.pruning.masks.packing import pack

SIZES = [(64, 128), (67, 130), (8, 32), (3, 2), (100, 5000), (16, 31)]
TOKENS = (1, 2, 5, 8, 17, 40)
NEAR = {torch.bfloat16: 2e-2, torch.float32: 5e-4}


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The operators; skipped where they cannot be compiled."""
    if native.missing():
        pytest.skip(native.missing())
    return torch.ops.autoprune


def sparse(rows: int, columns: int, form: str, dtype: torch.dtype, share: float = 0.4) -> Tensor:
    """A random matrix of the form's units, with an empty and a full row of units where there is room."""
    draw = torch.Generator().manual_seed(rows + columns)
    high, wide = (1, 1) if form == "bitmap" else (8, 2 if dtype is torch.bfloat16 else 1)
    down, across = -(-rows // high), -(-columns // wide)
    kept = torch.rand(down, across, generator=draw) < share
    kept[0] = False
    kept[-1] = down > 1
    mask = kept.repeat_interleave(high, 0).repeat_interleave(wide, 1)[:rows, :columns]
    return torch.randn(rows, columns, generator=draw).to(dtype) * mask


def packed(weight: Tensor, form: str) -> Any:
    """The matrix's own units packed: as many as it has."""
    return bitmap_of(weight) if form == "bitmap" else blocks_of(weight)


def far(ours: Tensor, x: Tensor, weight: Tensor) -> float:
    """The largest error relative to what rounding of the result allows."""
    exact = x.double() @ weight.double().t()
    return float(((ours.double() - exact).abs() / (1 + exact.abs())).max())


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize(
    ("form", "dtype"),
    [("blocks", torch.bfloat16), ("blocks", torch.float32), ("bitmap", torch.bfloat16)],
)
def test_packed_matrices(kernels: Any, level: int, form: Any, dtype: torch.dtype) -> None:
    run = kernels.block_linear if form == "blocks" else kernels.bitmap_linear
    for rows, columns in SIZES:
        weight = sparse(rows, columns, form, dtype)
        layer = SparseLinear(form, packed(weight, form), rows, columns)
        for tokens in TOKENS:
            x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)
            out = run(x, layer.values, layer.index, layer.start, rows, columns, level)
            assert out.dtype is dtype and far(out, x, weight) < NEAR[dtype], (rows, columns, tokens)


@pytest.mark.parametrize("form", ["blocks", "bitmap"])
def test_a_layer_takes_any_leading_shape_and_strides(form: Any) -> None:
    weight, bias = sparse(40, 64, form, torch.bfloat16), torch.randn(40).bfloat16()
    layer = SparseLinear(form, packed(weight, form), 40, 64, bias)
    wide = torch.randn(2, 9, 128).bfloat16()
    for x in (wide[..., ::2], wide[..., :64], wide[0, 0, :64], torch.randn(64, 3).bfloat16().t()):
        out = layer(x)
        assert out.shape == (*x.shape[:-1], 40)
        exact = x.double() @ weight.double().t() + bias.double()
        assert float(((out.double() - exact).abs() / (1 + exact.abs())).max()) < 2e-2


@pytest.mark.parametrize(
    ("pattern", "option", "form"),
    [("8x2", 40, "blocks"), ("unstructured", 30, "bitmap"), ("8x2", 100, "blocks")],
)
def test_what_the_packer_packs_comes_back_and_runs(pattern: str, option: int, form: Any) -> None:
    kind = pattern_of(pattern)
    weight = sparse(48, 96, form, torch.bfloat16, share=option / 130)
    matrix = pack(weight, kind, option)
    layer = SparseLinear(form, matrix.tensors, 48, 96)
    assert torch.equal(layer.to_dense(), weight)
    x = torch.randn(12, 96).bfloat16()
    assert far(layer(x), x, weight) < 2e-2
    assert layer.stored_bytes <= matrix.bytes + 2 * matrix.tensors["index"].numel() + 4


@pytest.mark.parametrize("form", ["blocks", "bitmap"])
def test_operators_keep_torch_s_rules_and_compile(kernels: Any, form: Any) -> None:
    layer = SparseLinear(form, packed(sparse(24, 32, form, torch.bfloat16), form), 24, 32)
    run = kernels.block_linear if form == "blocks" else kernels.bitmap_linear
    x = torch.randn(3, 32).bfloat16()
    torch.library.opcheck(run, (x, layer.values, layer.index, layer.start, 24, 32))
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(x), layer(x))


@pytest.mark.parametrize("form", ["blocks", "bitmap"])
def test_gradients_go_through_torch(kernels: Any, form: Any) -> None:
    weight = sparse(24, 32, form, torch.bfloat16)
    layer, x = SparseLinear(form, packed(weight, form), 24, 32), torch.randn(3, 32).bfloat16()
    x.requires_grad_()
    layer(x).sum().backward()
    assert torch.equal(x.grad, torch.ones(3, 24).bfloat16() @ weight)


def test_two_threads_give_what_one_gives(kernels: Any) -> None:
    """Bit for bit, of every kernel for one token and for many; and there are two."""
    blocks, free = (sparse(520, 256, form, torch.bfloat16) for form in ("blocks", "bitmap"))
    dense = torch.nn.Linear(256, 520, dtype=torch.bfloat16)
    layers = [SparseLinear("blocks", packed(blocks, "blocks"), 520, 256), DenseLinear(dense)]
    layers += [SparseLinear("bitmap", packed(free, "bitmap"), 520, 256)]
    layers += [Int8Linear(rounded(free), sparse=bits) for bits in (False, True)]
    x, before = torch.randn(40, 256).bfloat16(), torch.get_num_threads()
    with torch.inference_mode():
        one, found = [layer(t) for layer in layers for t in (x, x[:1])], []
        try:
            torch.set_num_threads(2)
            assert kernels.team() == 2
            found = [layer(t) for layer in layers for t in (x, x[:1])]
        finally:
            torch.set_num_threads(before)
    assert all(map(torch.equal, found, one)) and found


def test_without_kernels_layers_run_on_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "none here")
    weight, x = sparse(40, 64, "blocks", torch.float32), torch.randn(5, 64)
    layer = SparseLinear("blocks", packed(weight, "blocks"), 40, 64)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": torch.zeros(1, 4, 2).bfloat16()}, "no kernel for blocks 4x2 in torch.bfloat16"),
        ({"values": torch.zeros(1, 8, 2)}, "no kernel for blocks 8x2 in torch.float32"),
        ({"start": torch.zeros(3, dtype=torch.int32)}, "start has 3 entries, 16 outputs need 2"),
    ],
)
def test_what_no_kernel_runs_is_refused(change: Any, message: str) -> None:
    good = packed(sparse(16, 8, "blocks", torch.bfloat16), "blocks")
    with pytest.raises(KernelError, match=message):
        SparseLinear("blocks", {**good, **change}, 16, 8)
    with pytest.raises(KernelError, match="no kernel for a bitmap in torch.float32"):
        SparseLinear("bitmap", packed(sparse(16, 8, "bitmap", torch.float32), "bitmap"), 16, 8)


def test_wrong_inputs_are_refused_by_the_operators(kernels: Any) -> None:
    layer = SparseLinear("blocks", packed(sparse(16, 8, "blocks", torch.bfloat16), "blocks"), 16, 8)
    with pytest.raises(RuntimeError, match="x has 9 columns, the matrix 8"):
        layer(torch.zeros(2, 9).bfloat16())
    with pytest.raises(RuntimeError, match="x is Float, the matrix BFloat16"):
        layer(torch.zeros(2, 8))


def test_where_there_is_a_compiler_they_compile() -> None:
    """All other tests of kernels are skipped where they do not."""
    if platform.machine() not in ("x86_64", "AMD64") or os.environ.get("AUTOPRUNE_KERNELS") == "off":
        pytest.skip("another kind of processor, or switched off")
    try:
        build.find_compiler()
    except KernelError as none:
        pytest.skip(str(none))
    assert native.missing() == ""


def test_no_compiler_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(KernelError, match="CXX=no-such-compiler does not exist; install one"):
        build.find_compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(KernelError, match="there is no C"):
        build.find_compiler()


def test_a_compiler_that_fails_shows_its_last_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake = tmp_path / "cc"
    fake.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo fake 1 && exit 0\necho boom: no such flag >&2\nexit 3\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("CXX", str(fake))
    with pytest.raises(KernelError, match="cc failed with exit code 3: boom: no such flag") as told:
        build.build(Cache(tmp_path / "cache"))
    assert "\n" not in str(told.value)
    assert not [p for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix == ".so"]


def test_a_cache_that_cannot_be_written_leaves_torch_s_kernels(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code = "from autoprune.kernels import native; print(native.missing())"
    env = {"AUTOPRUNE_CACHE": str(tmp_path / "file" / "cache"), "PATH": os.environ["PATH"]}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert "cache" in done.stdout and done.stdout.count("\n") == 1


def test_switched_off_nothing_is_compiled(tmp_path: Path) -> None:
    code = "from autoprune.kernels import native; print(native.missing())"
    env = {"AUTOPRUNE_KERNELS": "off", "AUTOPRUNE_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.strip() == "AUTOPRUNE_KERNELS=off" and not list(tmp_path.iterdir())
