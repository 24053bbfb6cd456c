# mypy: disable-error-code="no-untyped-def, no-any-return, untyped-decorator, no-untyped-call"
"""Packed matrices times one or a few tokens on a GPU, in Triton. Importing this needs triton.

Both forms are those of `linear.py`. A program takes some outputs and works through their part of the matrix; where
there are few outputs the inputs are split over programs, too, whose sums are added in fp32.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS = 4  # outputs of a program of the bitmap kernel
WORDS = 1024  # inputs it looks at in a step
BLOCKS = 128  # blocks that a program of the block kernel looks at in a step
PROGRAMS = 1024  # inputs are split until there are about as many


@triton.jit
def _bitmap(
    x, values, bits, starts, out, rows, columns, across, pieces, piece, R: tl.constexpr, K: tl.constexpr
):
    row = tl.program_id(0) * R + tl.arange(0, R)
    part, token = tl.program_id(1), tl.program_id(2)
    live = row < rows
    at = tl.load(starts + row * pieces + part, mask=live, other=0)
    total = tl.zeros((R,), tl.float32)
    first = part * piece
    for k in range(first, min(first + piece, columns), K):
        column = k + tl.arange(0, K)
        inside = live[:, None] & (column < columns)[None, :]
        byte = tl.load(bits + row[:, None] * across + (column // 8)[None, :], mask=inside, other=0).to(
            tl.int32
        )
        bit = (byte >> (column % 8)[None, :]) & 1
        place = at[:, None] + tl.cumsum(bit, 1) - bit
        weight = tl.load(values + place, mask=inside & (bit > 0), other=0.0).to(tl.float32)
        token_in = tl.load(x + token * columns + column, mask=column < columns, other=0.0).to(tl.float32)
        total += tl.sum(weight * token_in[None, :], 1)
        at += tl.sum(bit, 1)
    tl.store(out + (token * pieces + part) * rows + row, total, mask=live)


@triton.jit
def _blocks(x, values, index, starts, out, rows, columns, high, pieces, B: tl.constexpr):
    block_row, part, token = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(starts + block_row)
    count = tl.load(starts + block_row + 1) - begin
    first, last = begin + count * part // pieces, begin + count * (part + 1) // pieces
    lane = tl.arange(0, 8)
    total = tl.zeros((8,), tl.float32)
    for j in range(first, last, B):
        block = j + tl.arange(0, B)
        live = block < last
        column = 2 * tl.load(index + block, mask=live, other=0).to(tl.int32)
        even = tl.load(x + token * columns + column, mask=live, other=0.0).to(tl.float32)
        odd = tl.load(x + token * columns + column + 1, mask=live & (column + 1 < columns), other=0.0).to(
            tl.float32
        )
        place = values + block[:, None].to(tl.int64) * 16 + lane[None, :] * 2
        left = tl.load(place, mask=live[:, None], other=0.0).to(tl.float32)
        right = tl.load(place + 1, mask=live[:, None], other=0.0).to(tl.float32)
        total += tl.sum(left * even[:, None] + right * odd[:, None], 0)
    row = block_row * 8 + lane
    tl.store(out + (token * pieces + part) * rows + row, total, mask=row < rows)


def bitmap_linear(
    x: Tensor, values: Tensor, index: Tensor, starts: Tensor, rows: int, columns: int
) -> Tensor:
    """x [..., columns] to [..., rows] in bf16; `starts` is what `piece_starts` gives."""
    flat, pieces = x.reshape(-1, columns).contiguous(), starts.shape[1]
    out = torch.empty(len(flat), pieces, rows, dtype=torch.float32, device=x.device)
    across, piece = index.numel() // rows, piece_size(columns, pieces)
    grid = (triton.cdiv(rows, ROWS), pieces, len(flat))
    _bitmap[grid](flat, values, index, starts, out, rows, columns, across, pieces, piece, R=ROWS, K=WORDS)
    return out.sum(1).to(x.dtype).view(*x.shape[:-1], rows)


def block_linear(x: Tensor, values: Tensor, index: Tensor, start: Tensor, rows: int, columns: int) -> Tensor:
    """x [..., columns] to [..., rows] in bf16, of 8x2 blocks; `start` has one entry more than there are block rows."""
    flat, high = x.reshape(-1, columns).contiguous(), start.numel() - 1
    pieces = max(1, min(16, PROGRAMS // max(1, high)))
    out = torch.empty(len(flat), pieces, rows, dtype=torch.float32, device=x.device)
    _blocks[(high, pieces, len(flat))](flat, values, index, start, out, rows, columns, high, pieces, B=BLOCKS)
    return out.sum(1).to(x.dtype).view(*x.shape[:-1], rows)


def piece_size(columns: int, pieces: int) -> int:
    """Inputs of a piece: whole steps."""
    return WORDS * triton.cdiv(triton.cdiv(columns, pieces), WORDS)


def piece_starts(index: Tensor, start: Tensor, rows: int, columns: int) -> Tensor:
    """Where the values of every piece of a row's inputs begin, int32 [rows, pieces]."""
    wanted = max(1, min(16, PROGRAMS * ROWS // max(1, rows)))
    size = piece_size(columns, wanted)
    pieces = triton.cdiv(columns, size)
    counts = torch.zeros(256, dtype=torch.int32)
    counts[:] = torch.tensor([bin(i).count("1") for i in range(256)])
    each = counts.to(index.device)[index.view(rows, -1).long()]
    padded = torch.nn.functional.pad(each, (0, -each.shape[1] % (size // 8))).view(rows, pieces, -1).sum(-1)
    return (start.view(-1, 1) + padded.cumsum(1) - padded).to(torch.int32).contiguous()


def available() -> Any:
    """The device that kernels run on here: CUDA, or the CPU under Triton's interpreter; None without either."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    from triton import knobs

    return torch.device("cpu") if knobs.runtime.interpret else None
