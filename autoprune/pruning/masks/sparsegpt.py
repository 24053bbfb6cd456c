"""SparseGPT: columns leave one after another, and what is left of each row makes up for them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from autoprune.patterns import Blocks, Grouped, Pattern, share
from autoprune.pruning.masks.choose import block_mask, grouped_mask, top

CHUNK = 128  # columns whose mask is chosen at once (N:M: one group)
DAMPING = 0.01  # of the mean diagonal


def factor(second: Tensor, damping: float = DAMPING) -> Tensor:
    """U [in, in] with U^T U = H^-1, U upper triangular; H = `second` with damping on its diagonal, fp64."""
    mean = float(second.diagonal().mean())
    eye = torch.eye(len(second), dtype=second.dtype, device=second.device)
    damped = second + (damping * mean if mean > 0 else 1.0) * eye
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    upper: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return upper


def sparsegpt(weight: Tensor, upper: Tensor, pattern: Pattern, option: int) -> Tensor:
    """`weight` [out, in] with masked weights zero and the others updated (card C8; Frantar and Alistarh, 2023).

    In every chunk of columns the weights, or blocks, of smallest w^2 / U_jj^2 leave, as they are by then; column by
    column the error e = (w_j - kept w_j) / U_jj is passed on, w_k -= e U_jk for k > j. Chunks share the count of kept
    weights so that the matrix keeps exactly what the option says.
    """
    columns = weight.t().double().clone()  # [in, out]
    scale = upper.diagonal()[:, None] ** 2
    for start, stop, count in _chunks(pattern, weight.shape[0], weight.shape[1], option):
        kept = _mask(pattern, (columns[start:stop] ** 2 / scale[start:stop]).t(), count).t()
        errors = torch.empty_like(columns[start:stop])
        for at in range(start, stop):
            leaving = torch.where(kept[at - start], 0.0, columns[at])
            error = errors[at - start] = leaving / upper[at, at]
            columns[at] -= leaving
            columns[at + 1 : stop].addr_(upper[at, at + 1 : stop], error, alpha=-1.0)
        columns[stop:].addmm_(upper[start:stop, stop:].t(), errors, alpha=-1.0)
        columns[start:stop].masked_fill_(~kept, 0.0)  # a zero of its own sign stays none
    return columns.t().to(weight.dtype)


def _chunks(pattern: Pattern, rows: int, columns: int, option: int) -> Iterator[tuple[int, int, int]]:
    """Columns start..stop, and how many weights of a group, weights or blocks are kept there."""
    if isinstance(pattern, Grouped):
        for start in range(0, columns, pattern.full):
            yield start, min(start + pattern.full, columns), option
        return
    width = pattern.width if isinstance(pattern, Blocks) else 1
    step = max(1, CHUNK // width) * width
    if isinstance(pattern, Blocks):
        total, across = pattern.blocks(rows, columns, option), pattern.grid(rows, columns)[1]
    else:
        total, across = share(rows * columns, option), columns
    before = 0
    for start in range(0, columns, step):
        stop = min(start + step, columns)
        until = total * -(-stop // width) // across
        yield start, stop, until - before
        before = until


def _mask(pattern: Pattern, scores: Tensor, count: int) -> Tensor:
    if isinstance(pattern, Grouped):
        return grouped_mask(scores, pattern.full, count)
    return block_mask(pattern, scores, count) if isinstance(pattern, Blocks) else top(scores, count)
