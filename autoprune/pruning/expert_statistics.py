"""What a block's experts do with the calibration text: all that ranking experts and their neurons need to know."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoprune.models.base import State, Weights
from autoprune.models.experts import ExpertDecoder


@dataclass(frozen=True)
class ExpertStatistics:
    """Sums over `tokens` tokens, fp64, one value an expert; `second` only when asked for.

    count: tokens that were routed to it; output: of |g f|, the norm of its output times its share; first_logit: router
    logits of tokens whose first choice it was; second [experts, width, width]: of g^2 x x^T, where x enters its output
    projection. `share` counts as if the shares of a token's experts summed to one. weights: those of the dense model.
    """

    tokens: int
    count: Tensor
    output: Tensor
    first_logit: Tensor
    second: Tensor | None
    weights: Weights


def gather(adapter: ExpertDecoder, block: int, states: Sequence[State], neurons: bool) -> ExpertStatistics:
    """Statistics of a block's dense experts on what enters them; states in chunks, summed in their order."""
    weights = adapter.weights(block, "ffn")
    experts, _, width = weights["down"].shape
    kind: Any = {"dtype": torch.float64, "device": weights["down"].device}
    zeros = {n: torch.zeros(experts, **kind) for n in ("count", "output")}
    zeros["first_logit"] = torch.zeros(experts, dtype=torch.float64)  # on the CPU: a GPU adds in any order
    second = torch.zeros(experts, width, width, **kind) if neurons else None
    found = ExpertStatistics(0, **zeros, second=second, weights=weights)
    for state in states:
        _add(found, adapter, adapter.normed(state, weights))
    tokens = sum(s.hidden.shape[0] * s.hidden.shape[1] for s in states)
    return ExpertStatistics(tokens, **zeros, second=second, weights=weights)


def _add(found: ExpertStatistics, adapter: ExpertDecoder, x: Tensor) -> None:
    routing, weights = adapter.route(x, found.weights), found.weights
    best, first = routing.logits.max(-1)
    found.first_logit.index_add_(0, first.cpu(), best.double().cpu())
    whole = routing.shares.sum(-1)  # below one in families that do not divide by it
    for expert, tokens, shares in routing.experts():
        inner = adapter.activate(expert, x[tokens], weights)
        norms = (inner @ weights["down"][expert].t()).norm(dim=-1)
        found.count[expert] += len(tokens)
        found.output[expert] += float((norms * shares / whole[tokens]).double().sum())
        if found.second is not None:
            weighted = inner * shares[:, None]
            found.second[expert] += weighted.t() @ weighted
