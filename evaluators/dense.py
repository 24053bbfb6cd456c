"""The dense model's side of the batch at hand: plans are scored batch by batch, so one is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from torch import Tensor

from autoprune.evaluation import Batch, Context

Value = TypeVar("Value")


class DenseBatch(Generic[Value]):
    """What `make` makes of the dense logits [B, T, V], computed once a batch."""

    def __init__(self, make: Callable[[Tensor], Value]) -> None:
        self._make = make
        self._context: Context | None = None
        self._held: tuple[tuple[str, tuple[int, int]], Value] | None = None

    def bind(self, context: Context) -> None:
        """Remember where the dense logits come from."""
        self._context, self._held = context, None

    def of(self, batch: Batch) -> Value:
        """The value for a batch."""
        key = (batch.split.value, batch.windows)
        if self._held is None or self._held[0] != key:
            assert self._context is not None, "bind() comes first"
            self._held = (key, self._make(self._context.dense_logits(batch.ids)))
        return self._held[1]
