"""How a family lays out its models: where blocks stand, what their parameters hold, which settings give sizes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from autoprune.space import Kind

Modules = Mapping[str, tuple[str, ...]]
"""Path of a module below its block -> short names of what its weight holds, one after another by rows.

Attention has `norm`, `q`, `k`, `v`, `o`, and `q_norm`, `k_norm` where heads are normed; an FFN has `norm`, `up`,
`down`, and `gate` where it is gated. A module's bias holds the same names with `_bias`.
"""

ATTENTION: Modules = {
    "input_layernorm": ("norm",),
    "self_attn.q_proj": ("q",),
    "self_attn.k_proj": ("k",),
    "self_attn.v_proj": ("v",),
    "self_attn.o_proj": ("o",),
}
FFN: Modules = {
    "post_attention_layernorm": ("norm",),
    "mlp.gate_proj": ("gate",),
    "mlp.up_proj": ("up",),
    "mlp.down_proj": ("down",),
}


@dataclass(frozen=True)
class Layout:
    """Classes, modules and config settings of a family.

    `heads`, `groups` and `width` name the settings that hold a block's sizes. Where `fixed_heads`, the stock class
    has as many heads as fill the hidden size: only `mixed` can have fewer, and `heads` is a setting of its own.
    """

    stock: type[Any]
    mixed: type[Any]
    attention: Modules
    ffn: Modules
    blocks: str = "model.layers"
    final_norm: str = "model.norm"
    transposed: frozenset[str] = frozenset()  # modules that store their weight as (in, out)
    activation: str = "hidden_act"
    eps: str | None = "rms_norm_eps"  # None: the default of LayerNorm
    heads: str = "num_attention_heads"
    groups: str | None = "num_key_value_heads"
    width: str = "intermediate_size"
    fixed_heads: bool = False
    stacked: Modules = field(default_factory=dict)  # parameters of an FFN that hold a matrix of every expert
    experts: str | None = None  # the settings of a block's experts, and of those that a token uses
    experts_per_token: str | None = None
    auto: str = "AutoModelForCausalLM"  # transformers' class that finds both
    post_norm: bool = False  # a sublayer's norm follows the sum with the residual

    def modules(self, kind: Kind) -> Modules:
        """The modules of a sublayer."""
        return self.attention if kind == "attention" else self.ffn

    def names(self, kind: Kind) -> set[str]:
        """The short names of a sublayer, biases included."""
        short = {name for names in self.modules(kind).values() for name in names}
        return short | {f"{name}_bias" for name in short}

    def sizes(self, heads: int, groups: int, width: int) -> dict[str, int]:
        """Config settings of a block; a sublayer that is gone (0) has none."""
        found = {self.heads: heads} | ({self.groups: groups} if self.groups else {})
        return (found if groups else {}) | ({self.width: width} if width else {})

    def routing(self, experts: int, experts_per_token: int) -> dict[str, int]:
        """Config settings of a block's router; none where the FFN has none, or is gone (0)."""
        if self.experts is None or self.experts_per_token is None or not experts:
            return {}
        return {self.experts: experts, self.experts_per_token: experts_per_token}

    def read(self, block: Any, kind: Kind, rows: Mapping[str, int]) -> dict[str, Tensor]:
        """The tensors of a dense block's sublayer by short name, [out, in], of all experts [experts, out, in]; views.

        `rows` of each short name.
        """
        found: dict[str, Tensor] = {}
        for path, names in self.modules(kind).items():
            module = block.get_submodule(path)
            weight = module.weight.detach()
            found |= _split(weight.t() if path in self.transposed else weight, names, rows, "")
            if getattr(module, "bias", None) is not None:
                found |= _split(module.bias.detach(), names, rows, "_bias")
        for path, names in self._stacked(kind).items():
            found |= _split(attrgetter(path)(block).detach(), names, rows, "")
        return found

    def write(self, block: int, kind: Kind, given: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Full parameter names and tensors of a sublayer; the inverse of `read`."""
        for path, names in self.modules(kind).items():
            place = f"{self.blocks}.{block}.{path}"
            weight = _joined([given[name] for name in names])
            yield f"{place}.weight", weight.t() if path in self.transposed else weight
            if f"{names[0]}_bias" in given:
                yield f"{place}.bias", _joined([given[f"{name}_bias"] for name in names])
        for path, names in self._stacked(kind).items():
            yield f"{self.blocks}.{block}.{path}", _joined([given[name] for name in names])

    def _stacked(self, kind: Kind) -> Modules:
        return self.stacked if kind == "ffn" else {}


def _split(tensor: Tensor, names: Sequence[str], rows: Mapping[str, int], ending: str) -> dict[str, Tensor]:
    at = max(0, tensor.ndim - 2)  # rows stand before columns, and behind experts
    parts = tensor.split([rows[name] for name in names], at) if len(names) > 1 else (tensor,)
    return {f"{name}{ending}": part for name, part in zip(names, parts, strict=True)}


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts), max(0, parts[0].ndim - 2)) if len(parts) > 1 else parts[0]
