"""The linear map of the block stream, on the faster of the CPU libraries that torch carries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x @ weight.T + bias`; x [..., in], weight [out, in].

    In fp32 on the CPU oneDNN is used (2.3 times the rate of the default library on AMD) for weights stored by rows or
    by columns, the two layouts of ladders and their prefixes; the rule depends on dtype and layout only, so a plan's
    numbers do not change with its neighbours. Where gradients are asked for it is the default library: oneDNN's map has
    no backward. Under autocast it is torch's own, in the dtype that this says.
    """
    if _differentiated(x, weight) or torch.is_autocast_enabled(x.device.type):
        return functional.linear(x, weight, bias)
    if _ONEDNN and x.device.type == "cpu" and x.dtype is torch.float32 and _dense_layout(weight):
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # type: ignore[no-any-return]
    return functional.linear(x, weight, bias)


def _differentiated(x: Tensor, weight: Tensor) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)


def _dense_layout(weight: Tensor) -> bool:
    rows, columns = weight.shape
    return weight.stride() in ((columns, 1), (1, rows))
