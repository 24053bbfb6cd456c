"""Which way a packed matrix runs here: measured once a size, remembered; dense where a kernel gains too little."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from autoprune.kernels import native
from autoprune.kernels.linear import SparseLinear
from torch import Tensor, nn
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.hardware.fingerprint import fingerprint
from autoprune.hardware.timing import interleaved

GAIN = 1.05  # a kernel must be faster than the library by this much
FEW, MANY = 1, 128  # tokens that stand for decoding and for reading a prompt
LIMIT = 8  # fewer tokens than this count as few
STEP = 5  # per cent: densities are rounded to it
ROUNDS = 7

Measure = Callable[[SparseLinear, int], float]


class ChosenLinear(nn.Module):
    """Runs the packed form where it pays and the dense one elsewhere; holds only what it runs."""

    def __init__(self, packed: SparseLinear, few: bool, many: bool) -> None:
        super().__init__()
        self.packed = packed if few or many else None
        self.dense = None if few and many else nn.Parameter(packed.to_dense(), requires_grad=False)
        self.bias = packed.bias
        self.few, self.many = few, many

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows]."""
        few = x.numel() < LIMIT * x.shape[-1]
        if self.packed is not None and (self.few if few else self.many):
            return self.packed(x)  # type: ignore[no-any-return]
        assert self.dense is not None
        return functional.linear(x, self.dense, self.bias)


class Selector:
    """Measured gains of the kernels over the library on this machine, kept in the cache."""

    def __init__(self, threads: int = 1, cache: Cache | None = None, measure: Measure | None = None) -> None:
        self._threads = threads
        self._measure = measure or self._timed
        where = Cache(source="kernels") if cache is None else cache
        inputs = [fingerprint(threads), native.instructions()]
        self._file = where.folder("kernel-gains", inputs, lambda folder: _write(folder / "gains.json", {}))
        self._gains: dict[str, float] = json.loads((self._file / "gains.json").read_text())

    def gain(self, layer: SparseLinear, tokens: int) -> float:
        """How many times faster the kernel is than the library's dense product; 0 where there is no kernel."""
        if native.missing():
            return 0.0
        kept = STEP * round(100 / STEP * layer.kept / (layer.rows * layer.columns))
        name = f"{layer.form} {layer.values.dtype} {layer.rows}x{layer.columns} {kept} % {tokens}"
        if name not in self._gains:
            self._gains[name] = self._measure(layer, tokens)
            _write(self._file / "gains.json", self._gains)
        return self._gains[name]

    def chosen(self, layer: SparseLinear) -> ChosenLinear:
        """The layer as it should run here."""
        few, many = (self.gain(layer, tokens) >= GAIN for tokens in (FEW, MANY))
        return ChosenLinear(layer, few, many)

    def _timed(self, layer: SparseLinear, tokens: int) -> float:
        x = torch.randn(tokens, layer.columns, generator=torch.Generator().manual_seed(0)).to(
            layer.values.dtype
        )
        dense = layer.to_dense()
        ways: dict[str, Any] = {
            "dense": lambda: functional.linear(x, dense),
            "packed": lambda: layer(x),
        }
        with torch.inference_mode():  # a choice, not a figure: a busy machine may make it
            found = interleaved(ways, ROUNDS, 0, self._threads, allow_contended=True)
        return found["dense"].over(found["packed"]).median


def _write(path: Path, gains: dict[str, float]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(gains, indent=1, sort_keys=True))
    os.replace(scratch, path)
