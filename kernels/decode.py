"""What a decoded token needs besides linear maps, in one call each: RMS norms, and attention of one query."""

from __future__ import annotations

from typing import Any

import torch
from autoprune.kernels import native
from autoprune.kernels.dense import DTYPES, runs, trained
from autoprune.kernels.selector import Selector
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "autoprune"  # of the attention, among those of transformers
NEAR = {torch.bfloat16: 2**-7, torch.float32: 1e-5}  # relative differences that rounding explains
TOKENS = 256  # in the cache, of the attention that is timed


class Norm(nn.Module):
    """An RMS norm with the weight of another one, which runs whatever needs gradients or is not on the CPU."""

    def __init__(self, stock: Any) -> None:
        super().__init__()
        self.weight, self.variance_epsilon = stock.weight, stock.variance_epsilon
        self._stock = (stock,)  # in a tuple: its weight is this module's

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] to the same."""
        if not runs(self.weight, x):
            return self._stock[0](x)  # type: ignore[no-any-return]
        out: Tensor = torch.ops.autoprune.rms_norm(x, self.weight, self.variance_epsilon)
        return out

    def extra_repr(self) -> str:
        return f"{tuple(self.weight.shape)}, eps={self.variance_epsilon}"


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers wants it: the kernel for one query that sees all keys, else torch's."""
    special = any(kwargs.get(name) is not None for name in ("position_bias", "cache", "softcap"))
    if attention_mask is None and not dropout and not special and takes(query, key, value):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return torch.ops.autoprune.attend_one(query, key, value, scale), None
    given = {"dropout": dropout, "scaling": scaling, **kwargs}
    return sdpa_attention_forward(module, query, key, value, attention_mask, **given)


def takes(query: Tensor, key: Tensor, value: Tensor) -> bool:
    """Whether the kernel runs these."""
    if query.shape[2] != 1 or query.device.type != "cpu" or query.dtype not in DTYPES:
        return False
    alike = key.dtype == value.dtype == query.dtype and key.shape == value.shape
    return alike and key.stride(-1) == value.stride(-1) == 1 and not any(map(trained, (query, key, value)))


def run_norms(model: nn.Module, selector: Selector) -> tuple[int, int]:
    """Replace the RMS norms of a model in place where the kernel gives what they give, and sooner; how many of all."""
    ours = of = 0
    for name, module in list(model.named_modules()):
        if not type(module).__name__.endswith("RMSNorm") or not hasattr(module, "variance_epsilon"):
            continue
        of += 1
        made = Norm(module)
        if name and _agrees(module, made) and _sooner(module, made, selector):
            owner, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(owner), attribute, made)
            ours += 1
    return ours, of


def run_attention(model: Any, selector: Selector) -> bool:
    """Let a model that runs on torch's attention run one token on the kernel, where that is faster; whether it does."""
    config = model.config
    heads, hidden = _size(config, "num_attention_heads"), _size(config, "hidden_size")
    if native.missing() or config._attn_implementation != "sdpa" or not model._can_set_attn_implementation():
        return False
    if not (heads and hidden) or model.dtype not in DTYPES or not model.can_generate():
        return False
    size = _size(config, "head_dim") or hidden // heads
    query, keys = (torch.randn(1, heads, count, size).to(model.dtype) for count in (1, TOKENS))

    def stock() -> Tensor:
        return nn.functional.scaled_dot_product_attention(query, keys, keys)

    def ours() -> Tensor:
        return torch.ops.autoprune.attend_one(query, keys, keys, 1.0)  # type: ignore[no-any-return]

    if not selector.faster(f"attention {model.dtype} {heads}x{size}", stock, ours):
        return False
    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def _size(config: Any, name: str) -> int | None:
    """What a config holds, of blocks that differ the commonest: as an attribute it would not tell that."""
    found: int | None = vars(config).get(config.attribute_map.get(name, name))
    return found


def _agrees(stock: Any, ours: Norm) -> bool:
    weight = stock.weight
    if native.missing() or weight is None or weight.dim() != 1 or weight.dtype not in DTYPES:
        return False
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, len(weight), generator=draw).to(weight.dtype)
    with torch.inference_mode():
        wanted = stock(x)
        if wanted.dtype is not x.dtype:
            return False
        near: bool = torch.allclose(ours(x), wanted, rtol=NEAR[x.dtype], atol=1e-6)
    return near


def _sooner(stock: Any, ours: Norm, selector: Selector) -> bool:
    size, dtype = len(stock.weight), stock.weight.dtype
    x = torch.ones(1, 1, size, dtype=dtype)
    gains: bool = selector.faster(f"norm {dtype} {size}", lambda: stock(x), lambda: ours(x))
    return gains
