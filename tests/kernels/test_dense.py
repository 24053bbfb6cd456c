"""Dense linear maps on the fastest way here: right in float64, and the library's wherever kernels have no business."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from autoprune.kernels import dense, native
from autoprune.kernels.dense import FEW, DenseLinear
from autoprune.kernels.linear import SparseLinear
from autoprune.kernels.packing import bitmap_of
from autoprune.kernels.selector import GAIN, PROMPTS, SMALLEST, Selector
from torch import Tensor, nn
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.errors import KernelError

SIZES = [(64, 128), (67, 130), (8, 32), (3, 2), (100, 5000), (16, 31), (5, 7000), (1, 1)]
NEAR = {torch.bfloat16: 1e-2, torch.float32: 1e-5}


@pytest.fixture(scope="module")
def kernels() -> Any:
    """The operators; skipped where they cannot be compiled."""
    if native.missing():
        pytest.skip(native.missing())
    return torch.ops.autoprune


def linear(dtype: torch.dtype, rows: int = 24, columns: int = 64, bias: bool = True) -> nn.Linear:
    """A stock layer that needs no gradients."""
    return nn.Linear(columns, rows, bias=bias).to(dtype).requires_grad_(False)


def far(ours: Tensor, x: Tensor, weight: Tensor) -> float:
    """The largest error relative to what rounding of the result and of the sum allows."""
    exact = x.double() @ weight.double().t()
    return float(((ours.double() - exact).abs() / (1 + exact.abs() + weight.shape[1] ** 0.5)).max())


@pytest.mark.parametrize("level", range(4))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrices_of_all_sizes(kernels: Any, level: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(level)
    for rows, columns in SIZES:
        weight = torch.randn(rows, columns, generator=draw).to(dtype)
        for tokens in (1, 2, 3, 4, 5, 9):
            x = torch.randn(tokens, columns, generator=draw).to(dtype)
            out = kernels.dense_linear(x, weight, level)
            assert out.dtype is dtype and out.shape == (tokens, rows)
            assert far(out, x, weight) < NEAR[dtype], (rows, columns, tokens)


def test_a_few_tokens_run_on_the_kernel_and_many_do_not(kernels: Any) -> None:
    stock = linear(torch.bfloat16, bias=False)
    layer, x = DenseLinear(stock), torch.randn(2, 9, 64).bfloat16()
    assert torch.equal(layer(x), stock(x))
    assert torch.equal(layer(x[0, :FEW]), kernels.dense_linear(x[0, :FEW], stock.weight))


def test_prompts_in_fp32_run_on_onednn(monkeypatch: pytest.MonkeyPatch) -> None:
    if not dense.has_onednn():
        pytest.skip("torch without oneDNN")
    stock, asked = linear(torch.float32), []
    real = dense.by_onednn
    monkeypatch.setattr(dense, "by_onednn", lambda *args: asked.append(1) or real(*args))
    layer, x = DenseLinear(stock, few=False, many=8), torch.randn(3, 7, 64)
    assert torch.allclose(layer(x), stock(x), atol=1e-5) and asked == [1]
    assert torch.equal(layer(x[0]), stock(x[0])) and asked == [1]


@pytest.mark.parametrize("onednn", [True, False])
def test_prompts_in_bf16_run_in_fp32_and_are_rounded_once(
    monkeypatch: pytest.MonkeyPatch, onednn: bool
) -> None:
    monkeypatch.setattr(dense, "has_onednn", lambda: onednn and torch.backends.mkldnn.is_available())
    stock, x = linear(torch.bfloat16), torch.randn(9, 64).bfloat16()
    layer = DenseLinear(stock, few=False, many=8)
    exact = x.double() @ stock.weight.double().t() + stock.bias.double()
    with torch.inference_mode():
        out = layer(x)
        assert out.dtype is torch.bfloat16 and torch.equal(layer(x[:7]), stock(x[:7]))
    assert torch.allclose(out.double(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_leading_shape_and_strides(kernels: Any, dtype: torch.dtype) -> None:
    stock = linear(dtype)
    layer, wide = DenseLinear(stock, many=1), torch.randn(2, 9, 128).to(dtype)
    for x in (
        wide[..., ::2],
        wide[..., :64],
        wide[0, 0, :64],
        wide[:, :2, 64:],
        torch.randn(64, 3).to(dtype).t(),
    ):
        assert layer(x).shape == (*x.shape[:-1], 24)
        assert torch.allclose(layer(x).float(), stock(x).float(), atol=0.05 if dtype.itemsize == 2 else 1e-5)


class Elsewhere(Exception):
    """The kernel ran."""


@pytest.fixture
def no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that may not be called."""

    def refuse(*_: Any) -> Tensor:
        raise Elsewhere

    monkeypatch.setattr(torch.ops.autoprune, "dense_linear", refuse, raising=False)
    monkeypatch.setattr(dense, "by_onednn", refuse)


@pytest.mark.parametrize("tokens", [1, 16])
def test_what_needs_gradients_runs_on_torch(kernels: Any, no_kernel: None, tokens: int) -> None:
    stock = linear(torch.float32)
    layer, x = DenseLinear(stock, many=8), torch.randn(tokens, 64)
    with pytest.raises(Elsewhere):
        layer(x)
    given = x.clone().requires_grad_()
    layer(given).sum().backward()
    assert given.grad is not None
    layer.requires_grad_(True)
    layer(x).sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad is stock.weight.grad


def test_autocast_and_other_dtypes_run_on_torch(kernels: Any, no_kernel: None) -> None:
    layer, x = DenseLinear(linear(torch.float32), many=8), torch.randn(1, 64)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.double()(x.double()).dtype is torch.float64


def test_it_is_saved_copied_and_tied_like_the_layer_it_replaces() -> None:
    stock = linear(torch.bfloat16)
    layer = DenseLinear(stock)
    assert layer.weight is stock.weight and isinstance(layer, nn.Linear)
    assert layer.state_dict().keys() == stock.state_dict().keys() and repr(layer).startswith(
        "DenseLinear(in_f"
    )
    other = copy.deepcopy(layer)
    assert torch.equal(other(torch.ones(1, 64).bfloat16()), layer(torch.ones(1, 64).bfloat16()))


def test_operators_keep_torch_s_rules_and_compile(kernels: Any) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        layer, x = DenseLinear(linear(dtype), many=8), torch.randn(3, 64).to(dtype)
        torch.library.opcheck(kernels.dense_linear, (x, layer.weight))
        compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
        for tokens in (3, 1, 16):
            given = torch.randn(tokens, 64).to(dtype)
            with torch.inference_mode():
                assert torch.equal(compiled(given), layer(given))


def test_weights_in_large_pages_are_the_same_weights(kernels: Any) -> None:
    layer, small = linear(torch.float32, 1024, 2048), linear(torch.float32)
    before, places = layer.weight.clone(), [m.weight.data_ptr() for m in (layer, small)]
    tied = torch.nn.Embedding(1, 1)
    tied.weight = layer.weight
    assert native.settle([layer, small]) in (0, 1)  # the system may have none
    assert layer.weight.data_ptr() % native.PAGE == 0 and torch.equal(layer.weight, before)
    assert layer.weight.data_ptr() != places[0] and small.weight.data_ptr() == places[1]
    assert tied.weight is layer.weight and not kernels.large_pages(before[:, ::2])


def test_small_packed_matrices_fill_large_pages_together(kernels: Any) -> None:
    weight = torch.randn(512, 1024).bfloat16() * (torch.rand(512, 1024) < 0.5)
    layers = [SparseLinear("bitmap", bitmap_of(weight), 512, 1024) for _ in range(6)]
    x = torch.randn(1, 1024).bfloat16()
    before = [layer(x) for layer in layers]
    assert native.settle(layers) in (0, 18)
    first = layers[0].values.data_ptr()
    assert first % native.PAGE == 0
    assert all(0 < layer.values.data_ptr() - first < 6 << 20 for layer in layers[1:])
    assert all(torch.equal(layer(x), was) for layer, was in zip(layers, before, strict=True))
    assert native.settle(layers[:1]) == 0, "less than a page is left where it is"


def test_without_kernels_it_is_torch_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "missing", lambda: "none here")
    stock, x = linear(torch.bfloat16), torch.randn(1, 64).bfloat16()
    assert torch.equal(DenseLinear(stock)(x), functional.linear(x, stock.weight, stock.bias))


def test_what_no_kernel_runs_is_refused() -> None:
    with pytest.raises(KernelError, match=r"takes a bf16 or fp32 matrix, not torch.float64 \[2, 3\]"):
        DenseLinear(nn.Linear(3, 2).double())


def test_the_selector_leaves_what_gains_too_little(tmp_path: Path) -> None:
    stock = linear(torch.float32, 128, 256)
    gains = {1: 1.5, 8: GAIN - 0.01, 32: 1.2, 128: 2.0}
    asked: list[int] = []

    def measure(layer: Any, tokens: int) -> float:
        asked.append(tokens)
        return gains[tokens]

    chosen = Selector(cache=Cache(tmp_path / "a"), measure=measure).dense(stock)
    assert isinstance(chosen, DenseLinear) and chosen.many == 32
    assert chosen.few is not bool(native.missing()) and set(asked) <= {1, *PROMPTS}
    assert Selector(cache=Cache(tmp_path / "b"), measure=lambda *_: 1.0).dense(stock) is stock
    narrow = linear(torch.bfloat16, 128, 256)
    wide = Selector(cache=Cache(tmp_path / "c"), measure=measure).dense(narrow)
    assert isinstance(wide, DenseLinear) and wide.many == 32


def test_small_matrices_and_other_dtypes_are_not_even_measured(tmp_path: Path) -> None:
    def measure(*_: Any) -> float:
        raise AssertionError("measured")

    selector = Selector(cache=Cache(tmp_path), measure=measure)
    for stock in (linear(torch.float32, 64, SMALLEST // 64 - 1), linear(torch.float16, 512, 512)):
        assert selector.dense(stock) is stock


def test_a_real_measurement_of_a_dense_matrix(tmp_path: Path) -> None:
    selector = Selector(cache=Cache(tmp_path), cold=False)
    gain = selector.dense_gain(linear(torch.float32, 128, 256), 32)
    assert gain > 0 or not dense.has_onednn()
