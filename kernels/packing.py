"""Packs a bf16 or fp32 matrix into the forms that kernels run: every unit that is not all zero is kept."""

from __future__ import annotations

import torch
from autoprune.kernels.linear import BLOCK
from torch import Tensor
from torch.nn import functional

from autoprune.errors import KernelError


def blocks_of(weight: Tensor) -> dict[str, Tensor]:
    """`values` [blocks, 8, 2 or 1], `index` (uint16 block columns) and `start` (int32) of a matrix [rows, columns].

    Raises KernelError for a dtype without block kernels.
    """
    if weight.dtype not in BLOCK:
        raise KernelError(f"no kernel for blocks in {weight.dtype}; there are 8x2 in bf16, 8x1 in fp32")
    (high, wide), (rows, columns) = BLOCK[weight.dtype], weight.shape
    whole = functional.pad(weight, (0, -columns % wide, 0, -rows % high))
    blocks = whole.view(-(-rows // high), high, -(-columns // wide), wide).transpose(1, 2)
    kept = (blocks != 0).flatten(2).any(-1)
    counts = kept.sum(1)
    return {
        "values": blocks[kept].contiguous(),
        "index": kept.nonzero()[:, 1].to(torch.uint16),
        "start": (counts.cumsum(0) - counts).to(torch.int32),
    }


def bitmap_of(weight: Tensor) -> dict[str, Tensor]:
    """`values` by rows, `index` (uint8 [rows, ceil(columns / 8)], lowest bit first) and `start` (int32)."""
    mask = weight != 0
    counts = mask.sum(1)
    padded = functional.pad(mask, (0, -weight.shape[1] % 8)).view(len(weight), -1, 8)
    bits = (padded.to(torch.uint8) << torch.arange(8, dtype=torch.uint8)).sum(-1)
    return {
        "values": weight[mask],
        "index": bits.to(torch.uint8),
        "start": (counts.cumsum(0) - counts).to(torch.int32),
    }
