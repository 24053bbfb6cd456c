"""Which way a matrix runs here: measured once a size, remembered; the library's way where a kernel gains too little."""

from __future__ import annotations

import copy
import itertools
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from autoprune.kernels import native
from autoprune.kernels.build import sources_digest
from autoprune.kernels.dense import DTYPES, DenseLinear, has_onednn
from autoprune.kernels.int8 import Int8Linear, Rounded
from autoprune.kernels.linear import SparseLinear
from torch import Tensor, nn

from autoprune import __version__
from autoprune.cache import Cache
from autoprune.hardware.fingerprint import fingerprint, last_level_cache
from autoprune.hardware.timing import interleaved

GAIN = 1.05  # a kernel must be faster than the library by this much
FEW, MANY = 1, 128  # tokens that stand for decoding and for reading a prompt
PROMPTS = (8, 32, MANY)  # from which of these numbers of tokens on a dense matrix runs in fp32 on oneDNN
LIMIT = 8  # fewer tokens than this count as few
SMALLEST = 1 << 10  # weights of a dense matrix: below, no choice is worth its measurement
STEP = 5  # per cent: densities are rounded to it
ROUNDS = 5
COLD = 64 << 20  # bytes of copies that take turns where the size of the last cache is not known
COPIES = 64

Measure = Callable[[Any, int], float]


class ChosenLinear(nn.Module):
    """Runs the packed form where it pays and the dense one elsewhere; holds only what it runs."""

    def __init__(
        self,
        packed: SparseLinear,
        few: bool,
        many: bool,
        dense: Callable[[nn.Linear], nn.Linear] = lambda linear: linear,
    ) -> None:
        super().__init__()
        self.packed = packed if few or many else None
        self.dense = None if few and many else dense(as_linear(packed))
        self.few, self.many = few, many

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows]."""
        few = x.numel() < LIMIT * x.shape[-1]
        if self.packed is not None and (self.few if few else self.many):
            return self.packed(x)  # type: ignore[no-any-return]
        assert self.dense is not None
        return self.dense(x)  # type: ignore[no-any-return]


class RoundedLinear(nn.Module):
    """A matrix that is stored in int8: in int8 where that pays, spread out elsewhere; None stands for spread out."""

    def __init__(self, few: Int8Linear | None, many: Int8Linear | None, dense: nn.Linear) -> None:
        super().__init__()
        self.few, self.many = few, many
        self.dense = None if few is not None and many is not None else dense

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows]."""
        way = self.few if x.numel() < LIMIT * x.shape[-1] else self.many
        way = self.dense if way is None else way
        assert way is not None
        return way(x)  # type: ignore[no-any-return]


class Selector:
    """Measured gains of the kernels over the library on this machine, kept in the cache.

    `cold`: weights come from memory, as those of a model do that is larger than the processor's caches.
    """

    def __init__(
        self,
        threads: int = 1,
        cache: Cache | None = None,
        measure: Measure | None = None,
        cold: bool = True,
    ) -> None:
        self._threads, self._cold = threads, cold
        self._measure = measure or self._timed
        where = Cache(source="kernels") if cache is None else cache
        inputs = [__version__, fingerprint(threads), native.instructions(), sources_digest(), cold]
        self._file = where.folder("kernel-gains", inputs, lambda folder: _write(folder / "gains.json", {}))
        self._gains: dict[str, float] = json.loads((self._file / "gains.json").read_text())

    def gain(self, layer: SparseLinear | Int8Linear, tokens: int) -> float:
        """How many times faster the kernel is than the best dense product here; 0 where there is no kernel."""
        if native.missing():
            return 0.0
        kept = STEP * round(100 / STEP * layer.kept / (layer.rows * layer.columns))
        name = f"{layer.form} {layer.values.dtype} {layer.rows}x{layer.columns} {kept} % {tokens}"
        if isinstance(layer, Int8Linear):
            size = f"{_about(layer.rows)}x{_about(layer.columns)}"
            name = f"{layer.form} int8 {layer.dtype} {size} {kept if layer.sparse else 100} % {tokens}"
        return self._known(name, layer, tokens)

    def chosen(self, layer: SparseLinear) -> ChosenLinear:
        """The layer as it should run here."""
        few, many = (self.gain(layer, tokens) >= GAIN for tokens in (FEW, MANY))
        return ChosenLinear(layer, few, many, self.dense)

    def rounded(self, matrix: Rounded, bias: Tensor | None) -> RoundedLinear:
        """A matrix of int8 as it should run here: each number of tokens on the fastest form that gains enough."""
        forms = [Int8Linear(matrix, bias, sparse) for sparse in ((False, True) if matrix.thin else (False,))]
        few, many = self._best(forms, FEW), self._best(forms[:1], MANY)
        return RoundedLinear(few, many, self.dense(as_linear(forms[0])))

    def _best(self, forms: Sequence[Int8Linear], tokens: int) -> Int8Linear | None:
        best = max(forms, key=lambda form: self.gain(form, tokens))
        return best if self.gain(best, tokens) >= GAIN else None

    def dense_gain(self, linear: nn.Linear, tokens: int) -> float:
        """How many times faster than torch our way of running a dense matrix is; 0 where there is none."""
        rows, columns = linear.weight.shape
        there = linear.weight.dtype in DTYPES and rows * columns >= SMALLEST
        if not there or (tokens == FEW and native.missing()):
            return 0.0
        if tokens != FEW and linear.weight.dtype == torch.float32 and not has_onednn():
            return 0.0
        size = f"{_about(rows)}x{_about(columns)}"
        return self._known(f"dense {linear.weight.dtype} {size} {tokens}", linear, tokens)

    def dense(self, linear: nn.Linear) -> nn.Linear:
        """A dense linear map as it should run here: itself, or one with the same parameters."""
        few = self.dense_gain(linear, FEW) >= GAIN
        many = None
        for tokens in reversed(PROMPTS):
            if self.dense_gain(linear, tokens) < GAIN:
                break
            many = tokens
        return DenseLinear(linear, few, many) if few or many else linear

    def faster(self, name: str, stock: Callable[[], Any], ours: Callable[[], Any]) -> bool:
        """Whether our way of doing something else is worth it; the same `name`, the same answer."""
        if native.missing():
            return False
        return self._known(name, {"dense": stock, "ours": ours}, FEW) >= GAIN

    def _known(self, name: str, layer: Any, tokens: int) -> float:
        if name not in self._gains:
            self._gains[name] = self._measure(layer, tokens)
            _write(self._file / "gains.json", self._gains)
        return self._gains[name]

    def _timed(self, layer: Any, tokens: int) -> float:
        if isinstance(layer, dict):
            return self._ratio(layer)
        linear = as_linear(layer) if isinstance(layer, SparseLinear | Int8Linear) else layer
        ours = layer if linear is not layer else DenseLinear(linear, tokens == FEW, tokens)
        base = linear if linear is layer else self.dense(linear)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(tokens, linear.in_features, generator=draw).to(linear.weight.dtype)
        return self._ratio({"dense": self._calls(base, x), "ours": self._calls(ours, x)})

    def _ratio(self, ways: Mapping[str, Callable[[], Any]]) -> float:
        with torch.inference_mode():  # a choice, not a figure: a busy machine may make it
            found = interleaved(ways, ROUNDS, 0, self._threads, allow_contended=True)
        return found["dense"].over(found["ours"]).median

    def _calls(self, layer: nn.Module, x: Tensor) -> Callable[[], Any]:
        """Calls of a layer, or of so many copies in turn that their weights are not in the cache."""
        size = sum(t.numel() * t.element_size() for t in (*layer.parameters(), *layer.buffers()))
        room = 2 * (last_level_cache() or COLD // 2) if self._cold and len(x) < LIMIT else 0
        count = min(COPIES, 1 + room // max(1, size))
        turn = itertools.cycle([layer, *(copy.deepcopy(layer) for _ in range(count - 1))])
        return lambda: next(turn)(x)


def as_linear(packed: SparseLinear | Int8Linear) -> nn.Linear:
    """The dense linear map of a packed one, in the dtype of the model that it is for."""
    made = nn.Linear(packed.columns, packed.rows, bias=False, device="meta")
    dtype = packed.dtype if isinstance(packed, Int8Linear) else packed.values.dtype
    made.weight = nn.Parameter(packed.to_dense().to(dtype), requires_grad=False)
    made.bias = packed.bias
    return made


def _about(size: int) -> int:
    """One number for sizes that differ little: each is measured once."""
    return round(2 ** (round(2 * math.log2(size)) / 2))


def _write(path: Path, gains: dict[str, float]) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(json.dumps(gains, indent=1, sort_keys=True))
    os.replace(scratch, path)
