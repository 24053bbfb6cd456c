"""From scores to a mask of a pattern, with exact counts and ties that do not depend on anything."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.patterns import Blocks, Grouped, Pattern, share


def mask_of(pattern: Pattern, scores: Tensor, option: int, by_row: bool = False) -> Tensor:
    """Which weights [rows, columns] an option keeps: those, or the blocks, of highest summed score.

    `by_row`: unstructured ones are compared within their row, each row keeping its share (Wanda's comparison), so that
    rows differ by one weight at most and the matrix keeps its exact count.
    """
    if isinstance(pattern, Grouped):
        return grouped_mask(scores, pattern.full, option)
    if isinstance(pattern, Blocks):
        rows, columns = scores.shape
        return block_mask(pattern, scores, pattern.blocks(rows, columns, option))
    if by_row:
        return row_mask(scores, option)
    return top(scores, share(scores.numel(), option))


def top(scores: Tensor, count: int) -> Tensor:
    """The `count` highest; of equal ones the first in memory order."""
    order = torch.argsort(scores.flatten(), descending=True, stable=True)
    mask = torch.zeros(scores.numel(), dtype=torch.bool, device=scores.device)
    mask[order[:count]] = True
    return mask.view(scores.shape)


def row_mask(scores: Tensor, percent: int) -> Tensor:
    """Every row's share; what does not divide is spread over the rows."""
    rows, columns = scores.shape
    total = share(scores.numel(), percent)
    ends = [total * (row + 1) // rows for row in range(rows)]
    counts = [end - start for start, end in zip([0, *ends], ends, strict=False)]
    return ranks(scores) < torch.tensor(counts, device=scores.device)[:, None]


def grouped_mask(scores: Tensor, size: int, keep: int) -> Tensor:
    """The best `keep` of every `size` neighbours of a row; a short last group keeps no more than it has."""
    rows, columns = scores.shape
    padded = functional.pad(scores.double(), (0, -columns % size), value=-torch.inf)
    found = ranks(padded.reshape(-1, size)) < keep
    return found.view(rows, -1)[:, :columns]


def block_mask(pattern: Blocks, scores: Tensor, count: int) -> Tensor:
    """The `count` blocks of highest summed score."""
    rows, columns = scores.shape
    return spread(pattern, top(block_sums(pattern, scores), count), rows, columns)


def block_sums(pattern: Blocks, scores: Tensor) -> Tensor:
    """Scores of blocks [block rows, block columns]; edges are padded by zeros."""
    return blocked(pattern, scores.double()).sum((2, 3))


def blocked(pattern: Blocks, matrix: Tensor) -> Tensor:
    """The blocks of a matrix, [block rows, block columns, height, width], edges padded by zeros."""
    rows, columns = matrix.shape
    down, across = pattern.grid(rows, columns)
    padded = functional.pad(matrix, (0, across * pattern.width - columns, 0, down * pattern.height - rows))
    return padded.reshape(down, pattern.height, across, pattern.width).permute(0, 2, 1, 3)


def spread(pattern: Blocks, blocks: Tensor, rows: int, columns: int) -> Tensor:
    """A grid of blocks to the matrix it stands for."""
    found = blocks.repeat_interleave(pattern.height, 0).repeat_interleave(pattern.width, 1)
    return found[:rows, :columns]


def ranks(scores: Tensor) -> Tensor:
    """Place of every entry in its row, 0 for the highest; of equal ones the first comes first."""
    order = torch.argsort(scores, dim=1, descending=True, stable=True)
    return torch.argsort(order, dim=1)
