"""What passes through the matrices of experts: of each over the tokens that the dense router sends to it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from autoprune.models.base import State, Weights
from autoprune.models.experts import ExpertDecoder
from autoprune.space import is_mask

TOKENS = "tokens"
MATRICES = ("gate", "up", "down")


def masks_experts(settings: Iterable[str]) -> bool:
    """Whether the FFNs of a space are masked, which are experts where the model has some."""
    return any(is_mask(name) and name.partition(".")[0] in MATRICES for name in settings)


def routed_inputs(adapter: ExpertDecoder, states: Sequence[State], weights: Weights) -> Mapping[str, Tensor]:
    """By `entering` (gate and up) and `inner` (down) `second` [experts, in, in] and `mean` [experts, in], and `tokens`.

    Means over each expert's own tokens, fp32; their sums over chunks are fp64. Zero for an expert without tokens.
    """
    experts, hidden, width = weights["down"].shape
    sums = {"entering": _zeros(experts, hidden), "inner": _zeros(experts, width)}
    count = torch.zeros(experts, dtype=torch.float64)
    for state in states:
        x = adapter.normed(state, weights)
        for expert, tokens, _ in adapter.route(x, weights).experts():
            seen = x[tokens]
            for name, passed in (("entering", seen), ("inner", adapter.activate(expert, seen, weights))):
                sums[name][0][expert] += (passed.t() @ passed).double().cpu()
                sums[name][1][expert] += passed.double().sum(0).cpu()
            count[expert] += len(tokens)
    each, found = count.clamp(min=1), {TOKENS: count.float()}
    for name, (second, mean) in sums.items():
        found[f"{name}.second"] = (second / each[:, None, None]).float()
        found[f"{name}.mean"] = (mean / each[:, None]).float()
    return found


def _zeros(experts: int, inputs: int) -> tuple[Tensor, Tensor]:
    wide = torch.float64
    return torch.zeros(experts, inputs, inputs, dtype=wide), torch.zeros(experts, inputs, dtype=wide)
