"""The norms of the families: hidden [..., d], weight and bias [d], in the dtype of the weight."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


def rms(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """RMSNorm."""
    return functional.rms_norm(hidden.to(weight.dtype), (hidden.shape[-1],), weight, eps)


def rms_around_one(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """RMSNorm whose weight is stored less one."""
    return functional.rms_norm(hidden.to(weight.dtype), (hidden.shape[-1],), 1 + weight, eps)


def layer(hidden: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """LayerNorm."""
    return functional.layer_norm(hidden, (hidden.shape[-1],), weight, bias, eps)
