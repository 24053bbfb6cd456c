"""int8 matrices for one or a few tokens, dense or with a bit a weight: a scale a row, tokens rounded to bytes."""

from __future__ import annotations

import torch
from autoprune.kernels import native
from autoprune.kernels.dense import trained
from autoprune.kernels.linear import PAD
from autoprune.kernels.packing import bitmap_of
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import KernelError

TOP = 127  # of the values


class Int8Linear(nn.Module):
    """`x @ W^T + bias` with W [rows, columns] in int8, rounded to the nearest of its row's 255 steps.

    `sparse`: what rounds to zero is left out, a bit a weight says what is there. Each token is rounded to 8 bits with a
    scale of its own; x and the result are bf16 or fp32. Raises KernelError for anything but a finite bf16 or fp32
    matrix.
    """

    values: Tensor
    scale: Tensor
    sums: Tensor
    index: Tensor
    start: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None = None, sparse: bool = False) -> None:
        super().__init__()
        if weight.dim() != 2 or weight.dtype not in (torch.bfloat16, torch.float32):
            raise KernelError(
                f"int8 is made of a bf16 or fp32 matrix, not {weight.dtype} {list(weight.shape)}"
            )
        if not bool(torch.isfinite(weight).all()):
            raise KernelError("a matrix with infinite values or NaN cannot be rounded to int8")
        self.rows, self.columns = weight.shape
        self.sparse, self.native = sparse, not native.missing()
        rounded, scale = rounded_rows(weight.detach())
        self.register_buffer("scale", scale)
        self.register_buffer("sums", rounded.to(torch.int32).sum(1).to(torch.int32))
        packed = bitmap_of(rounded) if sparse else {"values": rounded}
        self.kept = packed["values"].numel()
        if sparse:
            packed["values"] = functional.pad(packed["values"], (0, PAD))
        for name, tensor in packed.items():
            self.register_buffer(name, tensor.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows] in x's dtype."""
        if not self.native or x.device.type != "cpu" or trained(x):
            return functional.linear(x, self.to_dense().to(x.dtype), self.bias)
        run, of = torch.ops.autoprune, (self.scale, self.sums)
        if self.sparse:
            out = run.bitmap8_linear(x, self.values, self.index, self.start, *of, self.rows, self.columns)
        else:
            out = run.int8_linear(x, self.values, *of)
        return out if self.bias is None else out.add_(self.bias)  # type: ignore[no-any-return]

    def to_dense(self) -> Tensor:
        """The matrix that the layer holds, fp32."""
        if not self.sparse:
            return self.values * self.scale[:, None]
        places = torch.arange(8, dtype=torch.uint8, device=self.index.device)
        bits = (self.index.view(self.rows, -1, 1) >> places) & 1
        dense = self.scale.new_zeros(self.rows, self.columns)
        dense[bits.view(self.rows, -1)[:, : self.columns].bool()] = self.values[: self.kept].float()
        return dense * self.scale[:, None]

    @property
    def stored_bytes(self) -> int:
        """What a token has to read: values, index and scales."""
        rest = (self.index, self.start) if self.sparse else ()
        read: int = self.kept + sum(t.nbytes for t in (*rest, self.scale, self.sums))
        return read


def rounded_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Values [rows, columns] int8 and the scale [rows] fp32 of each row."""
    scale = weight.float().abs().amax(1) / TOP if weight.shape[1] else torch.zeros(len(weight))
    by = torch.where(scale > 0, 1 / scale, 0.0)
    return (weight.float() * by[:, None]).round().clamp(-TOP, TOP).to(torch.int8), scale
