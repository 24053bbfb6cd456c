"""int8 matrices against float64, on every instruction set of this processor."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from autoprune.kernels import native
from autoprune.kernels.int8 import TOP, Int8Linear, rounded, rounded_rows
from torch import Tensor
from torch.nn import functional

from autoprune.errors import KernelError

SIZES = [(64, 128), (67, 130), (8, 32), (3, 2), (40, 5000), (16, 63), (1, 1)]


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The operators; skipped where they cannot be compiled."""
    if native.missing():
        pytest.skip(native.missing())
    return torch.ops.autoprune


def matrix(rows: int, columns: int) -> Tensor:
    """Half zeros, an empty and a full row where there is room."""
    draw = torch.Generator().manual_seed(rows + columns)
    kept = torch.rand(rows, columns, generator=draw) < 0.5
    kept[0], kept[-1] = rows == 1, True
    return torch.randn(rows, columns, generator=draw) * kept


def exact(layer: Int8Linear, x: Tensor) -> Tensor:
    """The product of what the layer holds with tokens rounded to 255 steps, float64."""
    scale = x.double().abs().amax(-1, keepdim=True) / TOP
    steps = torch.floor(x.double() / scale.clamp_min(1e-300) + 0.5)
    return steps * scale @ layer.to_dense().double().t()


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("sparse", [False, True])
def test_matrices_of_all_sizes(kernels: Any, level: int, sparse: bool) -> None:
    for rows, columns in SIZES:
        layer = Int8Linear(rounded(matrix(rows, columns)), sparse=sparse)
        run = kernels.bitmap8_linear if sparse else kernels.int8_linear
        packed = (layer.index, layer.start) if sparse else ()
        sizes = (rows, columns) if sparse else ()
        for tokens, dtype in ((1, torch.float32), (3, torch.float32), (2, torch.bfloat16)):
            x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).to(dtype)
            out = run(x, layer.values, *packed, layer.scale, layer.sums, *sizes, level)
            wanted = exact(layer, x)
            one_step = float(layer.scale.max() * x.abs().max())  # a token's value may round to the other side
            off = (out.double() - wanted).abs() / (1 + wanted.abs())
            assert (
                out.dtype is dtype
                and float(off.max()) < (1e-2 if dtype is torch.bfloat16 else 1e-5) + one_step
            )


def test_what_it_holds_is_the_matrix_but_for_rounding(kernels: Any) -> None:
    weight = matrix(40, 200)
    for sparse in (False, True):
        layer = Int8Linear(rounded(weight), sparse=sparse)
        assert float((layer.to_dense() - weight).abs().amax(1).max()) <= float(weight.abs().max()) / TOP
        assert not bool(layer.to_dense()[weight == 0].any())
        x = torch.randn(2, 200)
        wanted = x.double() @ weight.double().t()
        assert float((layer(x).double() - wanted).norm() / wanted.norm()) < 0.02
    assert (
        Int8Linear(rounded(weight), sparse=True).stored_bytes
        < 0.75 * Int8Linear(rounded(weight)).stored_bytes
    )


@pytest.mark.parametrize("sparse", [False, True])
def test_any_leading_shape_strides_and_a_bias(kernels: Any, sparse: bool) -> None:
    bias, wide = torch.randn(40), torch.randn(2, 3, 128)
    layer = Int8Linear(rounded(matrix(40, 64)), bias, sparse)
    for x in (wide[..., ::2], wide[..., :64], wide[0, 0, :64], torch.randn(64, 3).t(), torch.zeros(1, 64)):
        out = layer(x)
        assert out.shape == (*x.shape[:-1], 40)
        assert torch.allclose(out.double(), exact(layer, x) + bias.double(), atol=0.05)


@pytest.mark.parametrize("sparse", [False, True])
def test_operators_keep_torch_s_rules_and_compile(kernels: Any, sparse: bool) -> None:
    layer, x = Int8Linear(rounded(matrix(24, 64)), sparse=sparse), torch.randn(3, 64)
    of = (layer.scale, layer.sums)
    if sparse:
        torch.library.opcheck(
            kernels.bitmap8_linear, (x, layer.values, layer.index, layer.start, *of, 24, 64)
        )
    else:
        torch.library.opcheck(kernels.int8_linear, (x, layer.values, *of))
    assert torch.equal(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


@pytest.mark.parametrize("sparse", [False, True])
def test_without_kernels_it_runs_on_torch(monkeypatch: pytest.MonkeyPatch, sparse: bool) -> None:
    monkeypatch.setattr(native, "missing", lambda: "none here")
    layer, x = Int8Linear(rounded(matrix(24, 64)), sparse=sparse), torch.randn(3, 64)
    assert torch.equal(layer(x), functional.linear(x, layer.to_dense()))


def test_rows_have_scales_of_their_own() -> None:
    values, scale = rounded_rows(torch.tensor([[1.0, -127.0], [0.0, 0.0], [0.5, 0.001]]))
    assert values.tolist() == [[1, -127], [0, 0], [127, 0]] and scale.tolist()[:2] == [1.0, 0.0]


def test_what_cannot_be_rounded_is_refused() -> None:
    with pytest.raises(KernelError, match="not torch.float64"):
        rounded(torch.zeros(2, 3).double())
    with pytest.raises(KernelError, match="infinite values or NaN"):
        rounded(torch.tensor([[1.0, float("nan")]]))
