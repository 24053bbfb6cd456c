"""Dense linear maps on whatever runs them fastest here: kernels for few tokens, fp32 on oneDNN for many, else torch."""

from __future__ import annotations

import torch
from autoprune.kernels import native
from torch import Tensor, nn
from torch.nn import functional

from autoprune.errors import KernelError

DTYPES = (torch.bfloat16, torch.float32)
FEW = 4  # tokens of the kernels: beyond, a matrix product is faster


class DenseLinear(nn.Linear):
    """A linear map with the parameters of another one: saved, tied and trained like that one.

    Up to FEW tokens run on the kernel where `few`, and `many` tokens or more in fp32 on oneDNN (None: never), a bf16
    matrix, too: processors that multiply no bf16 themselves take many times as long over it. All else runs on torch:
    other devices and dtypes, autocast, and whatever needs gradients.
    """

    def __init__(self, linear: nn.Linear, few: bool = True, many: int | None = None) -> None:
        nn.Module.__init__(self)
        if linear.weight.dim() != 2 or linear.weight.dtype not in DTYPES:
            kind = f"{linear.weight.dtype} {list(linear.weight.shape)}"
            raise KernelError(f"a dense kernel takes a bf16 or fp32 matrix, not {kind}")
        self.out_features, self.in_features = linear.weight.shape
        self.weight, self.bias = linear.weight, linear.bias
        self.few = few and not native.missing()
        self.many, self.onednn = many, has_onednn()

    def forward(self, x: Tensor) -> Tensor:
        """x [..., columns] to [..., rows]."""
        if not runs(self.weight, x):
            return functional.linear(x, self.weight, self.bias)
        if self.few and x.numel() <= FEW * self.in_features and self.weight.is_contiguous():
            out: Tensor = torch.ops.autoprune.dense_linear(x, self.weight)
            return out if self.bias is None else out.add_(self.bias)
        if self.many is not None and x.numel() >= self.many * self.in_features:
            return by_fp32(x, self.weight, self.bias, self.onednn)
        return functional.linear(x, self.weight, self.bias)


def runs(weight: Tensor, x: Tensor) -> bool:
    """Whether kernels may take these: on the CPU, of one dtype, without gradients or autocast."""
    if trained(x) or (torch.is_grad_enabled() and weight.requires_grad):
        return False
    return x.dtype == weight.dtype and x.dtype in DTYPES and x.device.type == weight.device.type == "cpu"


def trained(x: Tensor) -> bool:
    """Whether gradients are wanted, or dtypes are torch's to choose: kernels know neither."""
    return (torch.is_grad_enabled() and x.requires_grad) or torch.is_autocast_enabled("cpu")


def has_onednn() -> bool:
    """Whether torch was built with oneDNN and may use it."""
    return bool(torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled)


def by_fp32(x: Tensor, weight: Tensor, bias: Tensor | None, onednn: bool) -> Tensor:
    """The product in fp32, by oneDNN or torch, rounded once, to the dtype of x, at the end."""
    product = by_onednn if onednn else functional.linear
    return product(x.float(), weight.float(), None if bias is None else bias.float()).to(x.dtype)


def by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same product by oneDNN, where torch itself takes MKL."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return out
