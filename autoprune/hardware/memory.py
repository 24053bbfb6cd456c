"""The most bytes that tensors take while something runs."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _Live(TorchDispatchMode):
    """Follows the storages that operations make, from birth to death."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def add(self, tensor: torch.Tensor) -> None:
        """Count a tensor's storage once, for as long as it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._seen:
            self._seen.add(key)
            self.now += (size := storage.nbytes())
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._gone, key, size)

    def _gone(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(found):
            if isinstance(leaf, torch.Tensor):
                self.add(leaf)
        return found


def peak_bytes(model: torch.nn.Module, run: Callable[[], None]) -> float:
    """Peak of the model's weights and all tensors that `run` makes; scratch memory inside an operation is not seen."""
    live = _Live()
    for tensor in (*model.parameters(), *model.buffers()):
        live.add(tensor)
    with live:
        run()
    return float(live.peak)
