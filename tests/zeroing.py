"""Dense models without what a plan loses: its output set to zero."""

from __future__ import annotations

import copy
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor

from autoprune.models.layout import Modules
from autoprune.space import KINDS, Plan
from tests.families import Family


def zeroed(family: Family, model: Any, adapter: Any, plan: Plan) -> Any:
    """The model with the output of lost units, the first ones, set to zero; of lost sublayers all of it."""
    twin = copy.deepcopy(model)
    for block, layer in enumerate(twin.get_submodule(family.blocks)):
        for kind in KINDS:
            count = adapter.units(kind).count
            kept = int(plan.at(block, kind).get(adapter.unit_setting(kind)))
            with torch.no_grad():
                for path in family.out[kind].split(","):
                    _zero(attrgetter(path)(layer), count, kept)
            if not kept and adapter.layout.post_norm:
                _unnormed(layer, adapter.layout.modules(kind))
            if kind == "attention" and family.whole_norms:
                _see_kept(layer.self_attn, count, kept)
    return twin


def _zero(out: Any, count: int, kept: int) -> None:
    """The first units of an output projection, or of each in a stack; all of one that is not made of these units."""
    if isinstance(out, Tensor):  # a stack of experts
        out[..., : out.shape[-1] // count * (count - kept)] = 0
        return
    columns = out.weight if type(out).__name__ == "Conv1D" else out.weight.T
    if len(columns) % count:
        columns *= bool(kept)
        return
    columns[: len(columns) // count * (count - kept)] = 0
    if not kept and out.bias is not None:
        out.bias.zero_()


def _unnormed(layer: Any, modules: Modules) -> None:
    """A norm after the residual goes with its sublayer."""
    owner, _, name = next(path for path, names in modules.items() if names == ("norm",)).rpartition(".")
    setattr(layer.get_submodule(owner), name, torch.nn.Identity())


def _see_kept(attention: Any, count: int, kept: int) -> None:
    """Norms over all heads at once see those that are kept only."""
    for name in ("q_norm", "k_norm"):
        norm = getattr(attention, name)

        def over_kept(x: Tensor, norm: Any = norm) -> Tensor:
            lost = x.shape[-1] // count * (count - kept)
            mean = x[..., lost:].square().mean(-1, keepdim=True) if kept else torch.ones(())
            return norm.weight * x * torch.rsqrt(mean + norm.variance_epsilon)  # type: ignore[no-any-return]

        norm.forward = over_kept
