"""The operators `torch.ops.autoprune.*`: loaded when they are first wanted, and a way to go on without them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError

SWITCH = "AUTOPRUNE_KERNELS"  # `off`: torch's own kernels only
LARGE = 1 << 22  # bytes of a parameter that is worth moving
PAGE, LINE = 1 << 21, 64  # bytes of a large page, and of what the cache holds together
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


def settle(modules: Iterable[nn.Module]) -> int:
    """Let the weights of modules stand in large pages of memory, from where they are read faster; how many of them do.

    Buffers, as packed matrices have them, come to stand one after another in one place, so that small ones fill such
    pages together. Large parameters keep places of their own, so that saving them saves nothing else. A page that
    began in the middle of what was there before would stay small: all are moved to where one begins.
    """
    if missing():
        return 0
    alone: dict[int, list[Tensor]] = {}
    together: dict[int, list[Tensor]] = {}
    for module in modules:
        for found, tensors in ((alone, module.parameters()), (together, module.buffers())):
            for tensor in tensors:
                if tensor.device.type == "cpu" and tensor.is_contiguous() and tensor.nbytes:
                    found.setdefault(tensor.data_ptr(), []).append(tensor)
    large = [[same] for same in alone.values() if same[0].nbytes >= LARGE]
    return sum(map(_moved, [*large, list(together.values())]))


def _moved(groups: Sequence[Sequence[Tensor]]) -> int:
    """Tensors (those of a group are one) to large pages, side by side; how many stand in such."""
    sizes = [-(-same[0].nbytes // LINE) * LINE for same in groups]
    if sum(sizes) < PAGE:
        return 0
    room = torch.empty(sum(sizes) + PAGE, dtype=torch.uint8)
    at = -room.data_ptr() % PAGE
    whole = room[at : at + sum(sizes)]
    for same, size in zip(groups, sizes, strict=True):
        place = room[at : at + same[0].nbytes].view(same[0].dtype).view(same[0].shape)
        place.copy_(same[0].detach())
        for tensor in same:
            tensor.data = place
        at += size
    return len(groups) * int(torch.ops.autoprune.large_pages(whole))


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
