"""How a matrix is thinned: by the scores of its weights, or with an update of those that stay."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from autoprune.patterns import Pattern
from autoprune.pruning.masks.choose import mask_of
from autoprune.pruning.masks.sparsegpt import sparsegpt
from autoprune.pruning.masks.statistics import Inputs


@dataclass(frozen=True)
class Evidence:
    """What a method may look at: the matrix [out, in], its place, what enters it, and SparseGPT's factor of that."""

    weight: Tensor
    place: str  # `block3.ffn.up`
    inputs: Callable[[], Inputs]
    upper: Callable[[], Tensor]


Method = Callable[[Evidence, Pattern, int], Tensor]  # the masked matrix, in the weight's dtype


def random_mask(found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """The same random order for every option, another one for every matrix."""
    seed = torch.Generator().manual_seed(zlib.crc32(found.place.encode()))
    return _masked(found, mask_of(pattern, torch.rand(found.weight.shape, generator=seed), option))


def magnitude_mask(found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """The largest weights of the matrix."""
    return _masked(found, mask_of(pattern, found.weight.double() ** 2, option))


def wanda_mask(found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """The largest |w| x |input|_2, compared within each output (card C7); squared, so that blocks add up energies."""
    scores = found.weight.double() ** 2 * found.inputs().second.diagonal()
    return _masked(found, mask_of(pattern, scores, option, by_row=True))


def sparsegpt_mask(found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """Card C8: those that stay are updated."""
    return sparsegpt(found.weight, found.upper(), pattern, option)


def _masked(found: Evidence, mask: Tensor) -> Tensor:
    return torch.where(mask, found.weight, torch.zeros((), dtype=found.weight.dtype))


METHODS: Mapping[str, Method] = {
    "sparsegpt": sparsegpt_mask,
    "wanda": wanda_mask,
    "magnitude": magnitude_mask,
    "random": random_mask,
}
