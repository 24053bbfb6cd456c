"""The operators `torch.ops.autoprune.*`: loaded when they are first wanted, and a way to go on without them."""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError

SWITCH = "AUTOPRUNE_KERNELS"  # `off`: torch's own kernels only
LARGE = 1 << 22  # bytes of a tensor that surely holds a whole large page
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


def settle(module: nn.Module) -> int:
    """Let the weights of a module stand in large pages of memory, from where they are read faster; how many do."""
    if missing():
        return 0
    tensors = {t.data_ptr(): t for t in (*module.parameters(), *module.buffers())}
    large = [
        t for t in tensors.values() if t.device.type == "cpu" and t.nbytes >= LARGE and t.is_contiguous()
    ]
    return sum(torch.ops.autoprune.large_pages(t.detach()) for t in large)


def _describe() -> None:
    """Shapes of what the operators give, for torch.compile."""

    def dense(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], weight.shape[0]))

    def packed(
        x: Tensor, values: Tensor, index: Tensor, start: Tensor, rows: int, columns: int, most: int = 3
    ) -> Tensor:
        return x.new_empty((*x.shape[:-1], rows))

    def packed8(x: Tensor, values: Tensor, index: Tensor, start: Tensor, scale: Tensor, *rest: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], len(scale)))

    def attend(query: Tensor, *rest: Any) -> Tensor:
        batch, heads, one, channels = query.shape
        return query.new_empty((batch, one, heads, channels))

    def norm(x: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(x.shape)

    shapes = {"dense": dense, "int8": dense, "block": packed, "bitmap": packed, "bitmap8": packed8}
    for name, shape in shapes.items():
        torch.library.register_fake(f"autoprune::{name}_linear")(shape)
    torch.library.register_fake("autoprune::attend_one")(attend)
    torch.library.register_fake("autoprune::rms_norm")(norm)
