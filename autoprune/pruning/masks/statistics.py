"""What passes through every matrix of the dense model on calibration text: an artifact that masks are chosen from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from autoprune.cache import Cache
from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress
from autoprune.pruning.criteria.base import Inputs
from autoprune.pruning.experts import routed
from autoprune.pruning.ladders import OUTPUT
from autoprune.pruning.masks.experts import TOKENS, routed_inputs
from autoprune.space import KINDS, Kind

FILE = "statistics.safetensors"
LAYOUT = 1


class Statistics:
    """Reads the file as it is asked; fp32 on disk."""

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._file = safe_open(folder / FILE, framework="pt")

    def _tensor(self, name: str) -> Tensor:
        found: Tensor = self._file.get_tensor(name)  # type: ignore[no-untyped-call]
        return found

    def _part(self, name: str, expert: int | None) -> Tensor:
        """All of a tensor, or what it holds of an expert."""
        if expert is None:
            return self._tensor(name)
        found: Tensor = self._file.get_slice(name)[expert]  # type: ignore[no-untyped-call]
        return found

    def inputs(
        self,
        block: int,
        kind: Kind,
        matrix: str,
        device: torch.device | None = None,
        expert: int | None = None,
    ) -> Inputs:
        """Those of one matrix, on a device; q, k and v share theirs, and gate and up.

        Of an expert, over the tokens sent to it.
        """
        place = f"{block}.{kind}.{'inner' if matrix == OUTPUT[kind] else 'entering'}"
        second, mean = (self._part(f"{place}.{n}", expert).to(device).double() for n in ("second", "mean"))
        return Inputs(second, mean)

    def tokens(self, block: int, expert: int) -> float:
        """How many were sent to an expert."""
        return float(self._tensor(f"{block}.ffn.{TOKENS}")[expert])


def statistics_folder(
    adapter: Adapter,
    model_digest: str,
    windows: NDArray[np.int32],
    sequences: int,
    cache: Cache,
    progress: Progress | None = None,
    experts: bool = True,
) -> Path:
    """The folder for `Statistics`: of calibration windows [N, T] in chunks of `sequences`; of experts when asked."""
    family = f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    text = hashlib.sha256(windows.astype(np.int32).tobytes()).hexdigest()
    inputs = [LAYOUT, model_digest, family, text, list(windows.shape), sequences]
    each = experts and adapter.shape.experts > 0
    inputs += ["experts"] if each else []
    return cache.folder(
        "statistics", inputs, lambda folder: _build(adapter, windows, sequences, folder, progress, each)
    )


def _build(
    adapter: Adapter,
    windows: NDArray[np.int32],
    sequences: int,
    folder: Path,
    progress: Progress | None,
    experts: bool,
) -> None:
    """One pass of the dense model, block by block; products in fp32, their sums over chunks in fp64."""
    found: dict[str, Tensor] = {}
    with torch.inference_mode():
        starts = range(0, len(windows), sequences)
        states = [
            adapter.embed(torch.from_numpy(windows[s : s + sequences].astype(np.int64))) for s in starts
        ]
        for at in range(adapter.shape.blocks * len(KINDS)):
            block, kind = at // len(KINDS), KINDS[at % len(KINDS)]
            weights = adapter.weights(block, kind)
            if routed(adapter, kind) and experts:
                found |= {
                    f"{block}.{kind}.{n}": t for n, t in routed_inputs(adapter, states, weights).items()
                }
            elif not routed(adapter, kind):
                for name, passing in (("entering", adapter.entering), ("inner", adapter.inner)):
                    inputs = _inputs(passing(block, kind, state, weights) for state in states)
                    found[f"{block}.{kind}.{name}.second"] = inputs.second.float().cpu()
                    found[f"{block}.{kind}.{name}.mean"] = inputs.mean.float().cpu()
            states = [adapter.run_sublayer(block, kind, s, weights) for s in states]
            if progress is not None:
                progress(at + 1, adapter.shape.blocks * len(KINDS))
    save_file(found, folder / FILE)


def _inputs(chunks: Iterable[Tensor]) -> Inputs:
    """Of chunks [B, T, in]."""
    tokens, second, total = 0, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        x = chunk.reshape(-1, chunk.shape[-1])
        tokens, second, total = tokens + len(x), second + (x.t() @ x).double(), total + x.double().sum(0)
    return Inputs(second / tokens, total / tokens)
