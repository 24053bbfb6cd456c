"""The tables of `autoprune bench kernels` for int8 and fp32."""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.bench.kernels import COLD, cold, head, matrix, ratio, reading, timed
from autoprune.errors import MeasurementError

GONE = (50, 70)
TOKENS = (1, 4, 16, 128)
OFF = 0.03  # of int8, relative to the whole result
LIBRARY, OURS = "torch, dynamically quantised", "ours"

Sizes = Sequence[tuple[int, int]]


class Quantised(nn.Module):
    """torch's own int8 linear map for dynamically rounded fp32 tokens."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        from autoprune.kernels.int8 import rounded_rows

        rounded, scale = rounded_rows(weight)
        zeros = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():  # of the dtype's end: it is the best int8 that torch has here
            warnings.simplefilter("ignore")
            given = torch._make_per_channel_quantized_tensor(rounded, scale.double(), zeros, 0)
        self.packed = torch.ops.quantized.linear_prepack(given, None)
        self.stored_bytes, self._weight = weight.numel(), (weight,)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] fp32 to [..., rows]."""
        return torch.ops.quantized.linear_dynamic(x, self.packed, False)  # type: ignore[no-any-return]

    def __deepcopy__(self, memo: Any) -> Quantised:
        return Quantised(self._weight[0])


def int8_lines(options: argparse.Namespace, sizes: Sizes) -> list[str]:
    """Dense and bitmap products in int8 against torch's."""
    from autoprune.kernels.int8 import Int8Linear, rounded

    lines = [head("size", "matrix", "us", "GB/s", "of stream", f"to {LIBRARY}", "to best dense")]
    for rows, columns in sizes:
        weight = torch.randn(rows, columns)
        layers: dict[str, Any] = {LIBRARY: Quantised(weight), OURS: Int8Linear(rounded(weight))}
        for gone in GONE:
            kept = matrix(rows, columns, "bitmap", gone).float()
            layers[f"bitmap, {gone} % gone"] = _checked(Int8Linear(rounded(kept), sparse=True), kept)
        x = torch.randn(1, columns)
        calls: dict[str, Callable[[], Any]] = {name: cold(layer, x) for name, layer in layers.items()}
        calls["stream"] = reading()
        found = timed(calls, options)
        rate = COLD / found["stream"].median
        fastest = min((LIBRARY, OURS), key=lambda name: found[name].median)
        for name, layer in layers.items():
            speed = layer.stored_bytes / found[name].median
            lines.append(
                f"| {rows}x{columns} | {name} | {found[name].median * 1e6:.0f} | {speed / 1e9:.1f} | "
                f"{speed / rate:.2f} | {ratio(found[LIBRARY], found[name])} | {ratio(found[fastest], found[name])} |"
            )
    return lines


def fp32_lines(options: argparse.Namespace, sizes: Sizes) -> list[str]:
    """Dense fp32 products: our kernel for few tokens, oneDNN for many, and 8x1 blocks, against F.linear (MKL)."""
    from autoprune.kernels.dense import FEW, DenseLinear, has_onednn
    from autoprune.kernels.linear import SparseLinear
    from autoprune.kernels.packing import blocks_of

    lines = [head("size", "way", *(f"{tokens} tokens" for tokens in TOKENS))]
    for rows, columns in sizes:
        weight = torch.randn(rows, columns)
        library = nn.Linear(columns, rows, bias=False).requires_grad_(False)
        library.weight.copy_(weight)
        kept = weight * (matrix(rows, columns, "blocks", 50) != 0)
        ways: dict[str, nn.Module] = {"F.linear": library, "our kernel": DenseLinear(library)}
        ways["8x1 blocks, 50 % gone"] = SparseLinear("blocks", blocks_of(kept), rows, columns)
        if has_onednn():
            ways["oneDNN"] = DenseLinear(library, few=False, many=1)
        cells: dict[str, list[str]] = {name: [] for name in ways}
        for tokens in TOKENS:
            x = torch.randn(tokens, columns)
            calls = {n: cold(w, x) for n, w in ways.items() if n != "our kernel" or tokens <= FEW}
            found = timed(calls, options)
            for name, row in cells.items():
                row.append(ratio(found["F.linear"], found[name]) if name in found else "")
        lines += [f"| {rows}x{columns} | {name} | {' | '.join(row)} |" for name, row in cells.items()]
    return lines


def _checked(layer: Any, weight: Tensor) -> Any:
    x = torch.randn(2, weight.shape[1], generator=torch.Generator().manual_seed(1))
    exact = x.double() @ weight.double().t()
    off = float((layer(x).double() - exact).norm() / exact.norm())
    if not off < OFF:
        raise MeasurementError(f"int8 {list(weight.shape)} is off by {off:.1e}")
    return layer
