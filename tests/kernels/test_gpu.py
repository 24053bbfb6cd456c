"""The Triton kernels against float64: on a GPU where there is one, else under Triton's interpreter."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")
from autoprune.kernels import gpu
from autoprune.kernels.linear import FEW, SparseLinear
from autoprune.kernels.packing import bitmap_of, blocks_of

from autoprune.bench.kernels import matrix

CASES = [(13, 130, 60), (4, 2050, 60), (16, 64, 0), (16, 64, 100), (1, 8, 50)]


def far(ours: Tensor, x: Tensor, weight: Tensor) -> float:
    exact = x.double() @ weight.double().t()
    return float(((ours.double() - exact).abs() / (1 + exact.abs())).max())


@pytest.fixture(scope="module")
def device() -> Any:
    found = gpu.available()
    assert found is not None
    return found


@pytest.mark.parametrize(("rows", "columns", "gone"), CASES)
@pytest.mark.parametrize("form", ["blocks", "bitmap"])
def test_packed_matrices(device: Any, form: Any, rows: int, columns: int, gone: int) -> None:
    weight = matrix(rows, columns, form, gone)
    packed = blocks_of(weight) if form == "blocks" else bitmap_of(weight)
    layer = SparseLinear(form, packed, rows, columns).to(device)
    run = layer if device.type == "cuda" else layer._on_gpu
    for tokens in (1, 2):
        x = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(tokens)).bfloat16()
        assert far(run(x.to(device)).cpu(), x, weight) < 2e-2


@pytest.mark.parametrize("pieces", [1, 3])
def test_pieces_of_a_row_begin_where_their_values_do(monkeypatch: pytest.MonkeyPatch, pieces: int) -> None:
    monkeypatch.setattr(gpu, "WORDS", 16)
    monkeypatch.setattr(gpu, "PROGRAMS", pieces)
    weight = matrix(4, 40, "bitmap", 50)
    packed = bitmap_of(weight)
    starts = gpu.piece_starts(packed["index"], packed["start"], 4, 40)
    size = gpu.piece_size(40, pieces)
    for row in range(4):
        for piece, begin in enumerate(starts[row].tolist()):
            before = int((weight[row, : piece * size] != 0).sum())
            assert begin == int(packed["start"][row]) + before


def test_many_tokens_run_dense(device: Any) -> None:
    weight = matrix(16, 64, "blocks", 50)
    layer = SparseLinear("blocks", blocks_of(weight), 16, 64).to(device)
    x = torch.randn(FEW + 1, 64).bfloat16().to(device)
    assert torch.equal(layer(x), torch.nn.functional.linear(x, weight.to(device))) or device.type == "cpu"
    assert far(layer(x).cpu(), x.cpu(), weight) < 2e-2
