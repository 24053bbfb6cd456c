"""Precisions of products: `precision=` of a search's evaluations, and where bf16 is fast. Only sublayers are in it."""

from __future__ import annotations

from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

FULL, HALF = "fp32", "bf16"
WORDS = (FULL, HALF)
_products: ContextVar[str] = ContextVar("products", default=FULL)


@contextmanager
def products_in(word: str) -> Iterator[None]:
    """Inside, sublayers that a supernet runs multiply in this precision, one of `WORDS`."""
    token = _products.set(word)
    try:
        yield
    finally:
        _products.reset(token)


def sublayer(device: torch.device) -> AbstractContextManager[object]:
    """Around a sublayer of a supernet: its matrices and attention multiply as `products_in` says.

    In bf16 inputs and weights of products are rounded, and sums are fp32 within each. The residual stream, norms,
    softmax and routers stay in fp32, and so does what stands around the blocks.
    """
    import torch

    if _products.get() == FULL:
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def fast_in_half(device: torch.device) -> bool:
    """Whether bf16 products are no slower than fp32 ones: GPUs, and processors for which oneDNN has kernels of its own.

    Others, those without AVX512 among them, take about ten times as long.
    """
    import torch

    return device.type != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def exact(device: torch.device) -> AbstractContextManager[object]:
    """Inside a sublayer: what is fp32 whatever the precision."""
    import torch

    if not torch.is_autocast_enabled(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)
