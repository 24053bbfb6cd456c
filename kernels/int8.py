"""int8 matrices, dense or with a bit a weight: a scale a row, tokens rounded to bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from autoprune.kernels import native
from autoprune.kernels.dense import trained
from autoprune.kernels.linear import PAD
from autoprune.kernels.packing import bitmap_of
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import KernelError

TOP = 127  # of the values
MANY = 8  # tokens from which a matrix product is faster than one by one
DTYPES = (torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Rounded:
    """A matrix in int8, `values` [rows, columns] times `scale` fp32 [rows]; `dtype`: of the matrix it was made of."""

    values: Tensor
    scale: Tensor
    dtype: torch.dtype

    def to_dense(self) -> Tensor:
        """The matrix that it is, fp32."""
        return self.values * self.scale[:, None]

    @property
    def kept(self) -> int:
        """Values that are not zero."""
        return int(self.values.count_nonzero())

    @property
    def thin(self) -> bool:
        """Whether a bit a weight and the values that are not zero take fewer bytes than all values."""
        return self.kept + self._bits < self.values.numel()

    @property
    def bytes(self) -> int:
        """What it takes in a file."""
        return (self.kept + self._bits if self.thin else self.values.numel()) + 4 * len(self.scale)

    @property
    def _bits(self) -> int:
        rows, columns = self.values.shape
        return rows * -(-columns // 8)


def rounded(weight: Tensor) -> Rounded:
    """To the nearest of each row's 255 steps; KernelError for anything but a finite bf16 or fp32 matrix."""
    if weight.dim() != 2 or weight.dtype not in DTYPES:
        raise KernelError(f"int8 is made of a bf16 or fp32 matrix, not {weight.dtype} {list(weight.shape)}")
    if not bool(torch.isfinite(weight).all()):
        raise KernelError("a matrix with infinite values or NaN cannot be rounded to int8")
    return Rounded(*rounded_rows(weight.detach()), weight.dtype)


class Int8Linear(nn.Module):
    """`x @ W^T + bias` with W [rows, columns] in int8, a scale a row.

    `sparse`: zeros are left out, a bit a weight says what is there. Each token is rounded to 8 bits with a scale of its
    own; x and the result are bf16 or fp32.
    """

    values: Tensor
    scale: Tensor
    sums: Tensor
    index: Tensor
    start: Tensor

    def __init__(self, matrix: Rounded, bias: Tensor | None = None, sparse: bool = False) -> None:
        super().__init__()
        self.rows, self.columns = matrix.values.shape
        self.dtype = matrix.dtype
        self.sparse, self.native = sparse, not native.missing()
        self.form = "bitmap" if sparse else "dense"
        self.register_buffer("scale", matrix.scale)
        self.register_buffer("sums", matrix.values.to(torch.int32).sum(1).to(torch.int32))
        packed = bitmap_of(matrix.values) if sparse else {"values": matrix.values}
        self.kept = packed["values"].numel()
        if sparse:
            packed["values"] = functional.pad(packed["values"], (0, PAD))
        for name, tensor in packed.items():
            self.register_buffer(name, tensor.contiguous())
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows] in x's dtype."""
        if not self.native or x.device.type != "cpu" or x.dtype not in DTYPES or trained(x):
            return functional.linear(x, self.to_dense().to(x.dtype), self.bias)
        out = self._one_by_one(x) if self.sparse or x.numel() < MANY * self.columns else self._many(x)
        return out if self.bias is None else out.add_(self.bias)

    def _one_by_one(self, x: Tensor) -> Tensor:
        run, of = torch.ops.autoprune, (self.scale, self.sums)
        if not self.sparse:
            return run.int8_linear(x, self.values, *of)  # type: ignore[no-any-return]
        return run.bitmap8_linear(x, self.values, self.index, self.start, *of, self.rows, self.columns)  # type: ignore[no-any-return]

    def _many(self, x: Tensor) -> Tensor:
        """The same sums by torch's product of int8 matrices."""
        tokens, scale = rounded_rows(x.reshape(-1, self.columns))
        sums = torch._int_mm(tokens, self.values.t()).float()
        return sums.mul_(scale[:, None]).mul_(self.scale).to(x.dtype).view(*x.shape[:-1], self.rows)

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
