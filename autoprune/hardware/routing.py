"""How unevenly a router sends tokens to experts: counted on whole models, told in one number."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from autoprune.hardware.terms import hits
from autoprune.hardware.workload import Prefill, Workload

MOST = 4.0  # skew: all but the first expert have a fiftieth of the tokens
ROUTER = "TopKRouter"  # transformers' class names end so; they return the chosen experts last

Routed = tuple[int, int, int]  # experts of a layer, those a token uses, and those that some token was sent to


def routing_skew(models: Sequence[PreTrainedModel], workload: Workload) -> float:
    """The skew of `hits` that explains best how many experts of each layer a prefill of these models is sent to."""
    found = [routed for model in models for routed in hit_experts(model, workload)]
    return fitted_skew(found, workload.batch * workload.prefill_tokens)


def fitted_skew(found: Sequence[Routed], tokens: int) -> float:
    """By least squares; 0 where the counts tell nothing."""
    from scipy.optimize import minimize_scalar

    if not found or all(hit == experts for experts, _, hit in found):
        return 0.0

    def wrong(skew: float) -> float:
        return sum((hits(e, k, tokens, round(skew, 3)) - hit) ** 2 for e, k, hit in found)

    return round(float(minimize_scalar(wrong, bounds=(0.0, MOST), method="bounded").x), 3)


def hit_experts(model: PreTrainedModel, workload: Workload) -> list[Routed]:
    """Of every router of a model, in one prefill."""
    found: list[Routed] = []

    def count(_: nn.Module, __: Any, out: tuple[Any, ...]) -> None:
        chosen = out[-1]
        found.append((out[0].shape[-1], chosen.shape[-1], len(chosen.unique())))

    routers = [m for m in model.modules() if type(m).__name__.endswith(ROUTER)]
    hooks = [m.register_forward_hook(count) for m in routers]
    try:
        Prefill(model.train(False), workload)()
    finally:
        for hook in hooks:
            hook.remove()
    return found
