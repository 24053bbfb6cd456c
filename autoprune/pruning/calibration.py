"""Streams calibration windows through the dense model, block by block, and ranks the units of every site."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from autoprune.models.base import Adapter, State
from autoprune.pruning.criteria.activation import Activation
from autoprune.space import KINDS, Kind

Progress = Callable[[int, int], None]


def ranked_orders(
    adapter: Adapter, windows: NDArray[np.int32], sequences: int, progress: Progress | None = None
) -> Iterator[tuple[int, Kind, Tensor]]:
    """Yield (block, kind, order) with the most important unit first; ties keep the smaller index first.

    windows [N, T] are token ids of the calibration split, processed in chunks of `sequences`.
    """
    states = _embed(adapter, windows, sequences)
    total = adapter.shape.blocks * len(KINDS)
    for block in range(adapter.shape.blocks):
        for position, kind in enumerate(KINDS):
            criterion = Activation(kind, adapter.units(kind), adapter.weights(block, kind))
            states = [_advance(adapter, block, kind, state, criterion) for state in states]
            if progress is not None:
                progress(block * len(KINDS) + position + 1, total)
            yield block, kind, torch.argsort(criterion.scores(), descending=True, stable=True)


def _embed(adapter: Adapter, windows: NDArray[np.int32], sequences: int) -> list[State]:
    starts = range(0, len(windows), sequences)
    return [adapter.embed(torch.from_numpy(windows[s : s + sequences].astype(np.int64))) for s in starts]


def _advance(adapter: Adapter, block: int, kind: Kind, state: State, criterion: Activation) -> State:
    weights = adapter.weights(block, kind)
    criterion.add(adapter.inner(block, kind, state, weights))
    return adapter.run_sublayer(block, kind, state, weights)
