"""Linear layers that run packed matrices on the kernels, and on torch where these are missing."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

import torch
from autoprune.kernels import native
from autoprune.kernels.dense import trained
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import KernelError

Form = Literal["blocks", "bitmap"]
BLOCK = {torch.bfloat16: (8, 2), torch.float32: (8, 1)}  # outputs x inputs of a block, by dtype
FEW = 8  # tokens of a GPU's kernels
PAD = 64  # values that may be read beyond the last


class SparseLinear(nn.Module):
    """`x @ W^T + bias` with W [rows, columns] packed.

    `blocks`: values [blocks, 8, 2] bf16 or [blocks, 8, 1] fp32, index (block columns, rising in a block row) and start
    (int32, where every block row begins). `bitmap`: values [kept] bf16 by rows, index uint8 [rows, ceil(columns / 8)],
    lowest bit first, and start (int32, where every row begins). Raises KernelError for anything else.
    """

    values: Tensor
    index: Tensor
    start: Tensor

    def __init__(
        self,
        form: Form,
        packed: Mapping[str, Tensor],
        rows: int,
        columns: int,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__()
        check(form, packed, rows, columns)
        self.form, self.rows, self.columns = form, rows, columns
        self.native = not native.missing()
        self.pieces: Tensor | None = None  # where a GPU's programs begin in every row
        self.kept = packed["values"].numel()
        values, index, start = (packed[name].detach() for name in ("values", "index", "start"))
        if form == "blocks":
            index = index.to(torch.int32).to(torch.uint16)
            start = torch.cat([start, start.new_tensor([len(values)])])
        else:
            values = functional.pad(values, (0, PAD))
        for name, tensor in (("values", values), ("index", index), ("start", start.to(torch.int32))):
            self.register_buffer(name, tensor.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows], in the matrix's dtype."""
        if x.device.type == "cuda" and self._few(x):
            return self._on_gpu(x)
        if not self.native or x.device.type != "cpu" or trained(x):
            return functional.linear(x, self.to_dense(), self.bias)
        run = torch.ops.autoprune.block_linear if self.form == "blocks" else torch.ops.autoprune.bitmap_linear
        out: Tensor = run(x, self.values, self.index, self.start, self.rows, self.columns)
        return out if self.bias is None else out.add_(self.bias)

    def _few(self, x: Tensor) -> bool:
        """Whether a GPU's kernel runs these tokens: beyond, the matrix is spread out for a dense product."""
        return (
            x.dtype == torch.bfloat16 and x.numel() <= FEW * self.columns and find_spec("triton") is not None
        )

    def _on_gpu(self, x: Tensor) -> Tensor:
        from autoprune.kernels import gpu

        if self.form == "blocks":
            out = gpu.block_linear(x, self.values, self.index, self.start, self.rows, self.columns)
        else:
            if self.pieces is None or self.pieces.device != x.device:
                self.pieces = gpu.piece_starts(self.index, self.start, self.rows, self.columns)
            out = gpu.bitmap_linear(x, self.values, self.index, self.pieces, self.rows, self.columns)
        found: Tensor = out if self.bias is None else out.add_(self.bias)
        return found

    def to_dense(self) -> Tensor:
        """W [rows, columns], bit for bit."""
        return _blocks(self) if self.form == "blocks" else _bitmap(self)

    @property
    def stored_bytes(self) -> int:
        """What a token has to read: values and index."""
        each = self.values.element_size()
        return self.kept * each + sum(t.numel() * t.element_size() for t in (self.index, self.start))

    def extra_repr(self) -> str:
        share = self.kept / (self.rows * self.columns)
        return f"{self.columns}, {self.rows}, {self.form}, kept={share:.1%}"


def check(form: Form, packed: Mapping[str, Tensor], rows: int, columns: int) -> None:
    """Raise KernelError where no kernel runs such a matrix."""
    values = packed["values"]
    if form == "blocks":
        wanted = BLOCK.get(values.dtype)
        if wanted is None or tuple(values.shape[1:]) != wanted:
            shape = "x".join(map(str, values.shape[1:]))
            raise KernelError(
                f"no kernel for blocks {shape} in {values.dtype}; there are 8x2 in bf16, 8x1 in fp32"
            )
        if -(-columns // wanted[1]) > 1 << 16:
            raise KernelError(f"{columns} inputs are more than the block kernels take: {wanted[1] << 16}")
        starts = -(-rows // wanted[0])
    else:
        if values.dtype != torch.bfloat16:
            raise KernelError(f"no kernel for a bitmap in {values.dtype}; there is one in bf16")
        starts = rows
    if len(packed["start"]) != starts:
        raise KernelError(f"start has {len(packed['start'])} entries, {rows} outputs need {starts}")


def _blocks(layer: SparseLinear) -> Tensor:
    high, wide = layer.values.shape[1:]
    down, across = -(-layer.rows // high), -(-layer.columns // wide)
    dense = layer.values.new_zeros(down, across, high, wide)
    row = torch.arange(down, device=layer.start.device).repeat_interleave(layer.start.diff())
    dense[row, layer.index.to(torch.int64)] = layer.values
    return (
        dense.permute(0, 2, 1, 3)
        .reshape(down * high, across * wide)[: layer.rows, : layer.columns]
        .contiguous()
    )


def _bitmap(layer: SparseLinear) -> Tensor:
    places = torch.arange(8, dtype=torch.uint8, device=layer.index.device)
    bits = (layer.index.view(layer.rows, -1, 1) >> places) & 1
    mask = bits.view(layer.rows, -1)[:, : layer.columns].bool()
    dense = layer.values.new_zeros(layer.rows, layer.columns)
    dense[mask] = layer.values[: layer.kept]
    return dense
