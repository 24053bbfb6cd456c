"""The operators `torch.ops.autoprune.*`: loaded when they are first wanted, and a way to go on without them."""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor

from autoprune.errors import AutopruneError

SWITCH = "AUTOPRUNE_KERNELS"  # `off`: torch's own kernels only
NAMES = ("scalar", "AVX2", "AVX512", "AVX512 with bf16")


@cache
def missing() -> str:
    """Why the kernels cannot be used here; empty when they are loaded."""
    if os.environ.get(SWITCH, "") == "off":
        return f"{SWITCH}=off"
    from autoprune.kernels.build import build

    try:
        torch.ops.load_library(str(build()))
    except (
        AutopruneError,
        OSError,
    ) as error:  # no compiler, no cache, another torch
        return str(error)
    _describe()
    return ""


def instructions() -> str:
    """The instruction set that the kernels use on this processor, or why there are none."""
    return missing() or NAMES[torch.ops.autoprune.cpu_level()]


def _describe() -> None:
    """Shapes of what the operators give, for torch.compile."""

    def dense(x: Tensor, weight: Tensor, most: int = 3) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def packed(
        x: Tensor, values: Tensor, index: Tensor, start: Tensor, rows: int, columns: int, most: int = 3
    ) -> Tensor:
        return x.new_empty((*x.shape[:-1], rows))

    torch.library.register_fake("autoprune::dense_linear")(dense)
    torch.library.register_fake("autoprune::block_linear")(packed)
    torch.library.register_fake("autoprune::bitmap_linear")(packed)
