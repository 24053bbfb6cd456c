"""How a matrix is thinned: by a criterion's scores of its weights, or with an update of those that stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor

from autoprune.patterns import Pattern
from autoprune.pruning.criteria import CRITERIA
from autoprune.pruning.criteria.base import Criterion, Evidence
from autoprune.pruning.masks.choose import mask_of
from autoprune.pruning.masks.sparsegpt import sparsegpt

Method = Callable[[Evidence, Pattern, int], Tensor]  # the masked matrix, in the weight's dtype
SPARSEGPT = "sparsegpt"


def updated(found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """Card C8: those that stay make up for those that leave."""
    return sparsegpt(found.weight, found.upper(), pattern, option)


def mask_only(criterion: Criterion, found: Evidence, pattern: Pattern, option: int) -> Tensor:
    """Those that stay are as they were."""
    mask = mask_of(pattern, criterion.weights(found), option, criterion.by_row)
    return torch.where(mask, found.weight, torch.zeros((), dtype=found.weight.dtype))


def needs(method: str) -> frozenset[str]:
    """The gradients that a method asks for."""
    return frozenset() if method == SPARSEGPT else CRITERIA[named(method)].needs


def named(method: str) -> str:
    """The criterion of a method: `wanda` is what ranking units calls `activation`."""
    return "activation" if method == "wanda" else method


METHODS: Mapping[str, Method] = {
    SPARSEGPT: updated,
    "wanda": partial(mask_only, CRITERIA["activation"]),
    **{name: partial(mask_only, found) for name, found in CRITERIA.items() if name != "activation"},
}
