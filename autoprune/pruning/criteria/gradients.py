"""Gradients of the dense model's weights on calibration windows, through the block stream: an artifact for criteria."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from autoprune.cache import Cache
from autoprune.models.base import Adapter
from autoprune.pruning.calibration import Progress
from autoprune.space import KINDS

KINDS_OF = ("loss", "squares", "fisher", "output")
FILE = "gradients.safetensors"
WINDOWS = 64  # at most: one backward each
BLOCK = 8  # neighbouring inputs of a diagonal block of the Fisher matrix
DAMPING = 0.01  # of the Fisher matrix' mean diagonal
LAYOUT = 1


class Gradients(Protocol):
    """Where criteria find them."""

    def get(self, kind: str, place: str) -> Tensor:
        """Figures [out, in] of one of `KINDS_OF` for `block3.ffn.up`."""


class StoredGradients:
    """Reads the file as it is asked; raises SafetensorError for what was not gathered.

    `loss`: mean of the windows' dL/dw; `squares`: mean of its square; `fisher`: diagonal of the inverse of the Fisher
    matrix in blocks of 8 neighbouring inputs; `output`: mean of df/dw, f the mean over the vocabulary of each logit's
    maximum over positions.
    """

    def __init__(self, folder: Path) -> None:
        self.name = folder.name
        self._file: Any = safe_open(folder / FILE, framework="pt")

    def get(self, kind: str, place: str) -> Tensor:
        """From the file."""
        found: Tensor = self._file.get_tensor(f"{kind}.{place}")
        return found


def gradient_folder(
    adapter: Adapter,
    model_digest: str,
    windows: NDArray[np.int32],
    kinds: Collection[str],
    cache: Cache,
    progress: Progress | None = None,
) -> Path:
    """The folder for `StoredGradients`, of the first windows of those given."""
    windows, family = windows[:WINDOWS], f"{type(adapter).__module__}.{type(adapter).__qualname__}"
    text = hashlib.sha256(windows.astype(np.int32).tobytes()).hexdigest()
    inputs = [LAYOUT, model_digest, family, text, list(windows.shape), sorted(kinds)]
    return cache.folder("gradients", inputs, lambda folder: _build(adapter, windows, kinds, folder, progress))


def _build(
    adapter: Adapter,
    windows: NDArray[np.int32],
    kinds: Collection[str],
    folder: Path,
    progress: Progress | None,
) -> None:
    sums: dict[str, Tensor] = {}
    for number, row in enumerate(windows, 1):
        ids = torch.from_numpy(row.astype(np.int64))[None].to(adapter.model.device)
        if {"loss", "squares", "fisher"} & set(kinds):
            for place, gradient in _gradients(adapter, ids, _loss).items():
                _add(sums, place, gradient, kinds)
        if "output" in kinds:
            for place, gradient in _gradients(adapter, ids, _peaks).items():
                _sum(sums, f"output.{place}", gradient)
        if progress is not None:
            progress(number, len(windows))
    found = {
        name: (_inverse(t / len(windows)) if name.startswith("fisher.") else t / len(windows))
        for name, t in sums.items()
    }
    weights = {n: t.float().contiguous().cpu() for n, t in found.items()}
    save_file(_trimmed(weights, adapter), folder / FILE)


def _add(sums: dict[str, Tensor], place: str, gradient: Tensor, kinds: Collection[str]) -> None:
    if "loss" in kinds:
        _sum(sums, f"loss.{place}", gradient)
    if "squares" in kinds:
        _sum(sums, f"squares.{place}", gradient**2)
    if "fisher" in kinds:
        rows, columns = gradient.shape
        split = functional.pad(gradient, (0, -columns % BLOCK)).view(rows, -1, BLOCK)
        _sum(sums, f"fisher.{place}", split[..., :, None] * split[..., None, :])


def _sum(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    if name in sums:
        sums[name] += value
    else:
        sums[name] = value.clone()


def _inverse(fisher: Tensor) -> Tensor:
    """Diagonals [out, in] of the inverses of damped blocks [out, blocks, size, size]."""
    mean = float(fisher.diagonal(dim1=-2, dim2=-1).mean())
    damping = DAMPING * mean if mean > 0 else 1.0
    inverse = torch.linalg.inv(fisher + damping * torch.eye(BLOCK, device=fisher.device))
    diagonal: Tensor = inverse.diagonal(dim1=-2, dim2=-1).flatten(1)
    return diagonal


def _trimmed(found: Mapping[str, Tensor], adapter: Adapter) -> dict[str, Tensor]:
    """Without what blocks of the Fisher matrix were padded by."""
    trimmed = {}
    for name, tensor in found.items():
        _, block, kind, matrix = name.split(".")
        weights = adapter.weights(int(block.removeprefix("block")), kind)  # type: ignore[arg-type]
        trimmed[name] = tensor[:, : weights[matrix].shape[1]].contiguous()
    return trimmed


def _gradients(
    adapter: Adapter, ids: Tensor, objective: Callable[[Tensor, Tensor], Tensor]
) -> dict[str, Tensor]:
    """Of every matrix inside blocks, for ids [1, T]; embedding and head stay fixed."""
    leaves: dict[str, Tensor] = {}
    with torch.inference_mode(False), torch.enable_grad():
        with torch.no_grad():
            state = adapter.embed(ids)
        for at in range(adapter.shape.blocks * len(KINDS)):
            block, kind = at // len(KINDS), KINDS[at % len(KINDS)]
            weights = dict(adapter.weights(block, kind))
            for name, tensor in weights.items():
                if tensor.ndim == 2:
                    weights[name] = tensor.detach().requires_grad_()
                    leaves[f"block{block}.{kind}.{name}"] = weights[name]
            state = adapter.run_sublayer(block, kind, state, weights)
        found = torch.autograd.grad(objective(adapter.head(state), ids), list(leaves.values()))
    return dict(zip(leaves, found, strict=True))


def _loss(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean next-token loss."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())


def _peaks(logits: Tensor, ids: Tensor) -> Tensor:
    """Mean over the vocabulary of each logit's maximum over positions."""
    return logits.amax(1).mean()
