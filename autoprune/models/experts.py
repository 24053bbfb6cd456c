"""What the families of mixtures of experts share: a router sends every token to a few of a block's FFNs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoprune.errors import UnsupportedModelError
from autoprune.models.base import State, Units, Weights, added
from autoprune.models.decoder import Decoder
from autoprune.models.layout import Modules
from autoprune.precision import exact
from autoprune.shape import Shape
from autoprune.space import Kind, SublayerPlan

ROUTED: Modules = {"post_attention_layernorm": ("norm",), "mlp.gate": ("router",)}
STACKED: Modules = {"mlp.experts.gate_up_proj": ("gate", "up"), "mlp.experts.down_proj": ("down",)}
SLICED = {"gate": 1, "up": 1, "down": 2}  # dimension of an expert's neurons; dimension 0 counts experts


@dataclass(frozen=True)
class Routing:
    """Where N tokens go: router logits [N, experts], the chosen experts [N, k] and how much each counts [N, k]."""

    logits: Tensor
    chosen: Tensor
    shares: Tensor

    def experts(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Every expert that has tokens, in order, with those tokens [n] and its share in each [n]."""
        flat = self.chosen.flatten()
        order = flat.argsort(stable=True)
        tokens, shares = order // self.chosen.shape[1], self.shares.flatten()[order]
        start = 0
        for expert, count in enumerate(flat.bincount(minlength=self.logits.shape[1]).tolist()):
            if count:
                yield expert, tokens[start : start + count], shares[start : start + count]
            start += count


class ExpertDecoder(Decoder):
    """A decoder whose FFNs are experts; a family says in `normalised` whether the chosen experts' shares sum to one.

    Weights of an FFN: norm [d], router [experts, d], gate and up [experts, width, d], down [experts, d, width], and
    those of a shared expert where there is one: shared_gate, shared_up, shared_down, shared_router [1, d].
    """

    def check(self, config: Any) -> None:
        """Refuses models some of whose blocks have an FFN without router."""
        plain = list(getattr(config, "mlp_only_layers", None) or [])
        if plain:
            raise UnsupportedModelError(
                f"{config.model_type} with mlp_only_layers={plain} is not supported, only with experts in all blocks"
            )
        if getattr(config, "decoder_sparse_step", 1) != 1:
            raise UnsupportedModelError(
                f"{config.model_type} with decoder_sparse_step={config.decoder_sparse_step} is not supported, only 1"
            )

    def normalised(self, config: Any) -> bool:
        """Whether the shares of a token's experts sum to one."""
        return bool(config.norm_topk_prob)

    def route(self, x: Tensor, weights: Weights, plan: SublayerPlan | None = None) -> Routing:
        """Where tokens x [N, d] go.

        Shares that sum to one are computed from the chosen experts' logits alone, which is the same, so that an expert
        whom nobody chose can go without changing a bit.
        """
        with exact(x.device):  # rounding would send tokens elsewhere
            logits = self._linear(x, weights["router"])
        k = self.shape.experts_per_token
        k = min(k if plan is None else int(plan.get("experts_per_token", k)), logits.shape[1])
        if self.normalised(self.model.config):
            best = logits.topk(k)
            return Routing(logits, best.indices, best.values.float().softmax(-1).to(x.dtype))
        best = logits.float().softmax(-1).topk(k)
        return Routing(logits, best.indices, best.values.to(x.dtype))

    def activate(self, expert: int, x: Tensor, weights: Weights) -> Tensor:
        """What enters an expert's output projection, [n, width]; x [n, d]."""
        up = self._linear(x, weights["up"][expert])
        return self._activation(self._linear(x, weights["gate"][expert])).mul_(up)  # type: ignore[no-any-return]

    def normed(self, state: State, weights: Weights) -> Tensor:
        """The tokens that enter an FFN, [N, d]."""
        return self.norm(state.hidden, weights["norm"], None, self._eps).flatten(0, 1)

    def inner(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """As of any decoder; of experts [B, T, experts x width], times each expert's share, zero where it has none."""
        if kind == "attention":
            return super().inner(block, kind, state, weights, plan)
        x = self.normed(state, weights)
        found = x.new_zeros(len(weights["down"]), len(x), weights["down"].shape[2])
        for expert, tokens, shares in self.route(x, weights, plan).experts():
            found[expert, tokens] = self.activate(expert, x[tokens], weights) * shares[:, None]
        return found.transpose(0, 1).reshape(*state.hidden.shape[:2], -1)

    def run_sublayer(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> State:
        """Residual plus what attention or the experts give; the input state stays as it was."""
        if kind == "attention":
            return super().run_sublayer(block, kind, state, weights, plan)
        x = self.normed(state, weights)
        out = self._shared(x, weights).to(x.dtype) if "shared_router" in weights else torch.zeros_like(x)
        for expert, tokens, shares in self.route(x, weights, plan).experts():
            found = self._linear(self.activate(expert, x[tokens], weights), weights["down"][expert])
            out.index_add_(0, tokens, found * shares[:, None])
        return replace(state, hidden=added(out.view_as(state.hidden), state.hidden))

    def units(self, kind: Kind) -> Units:
        """KV groups, or the neurons of every expert: each expert loses as many."""
        if kind == "attention":
            return super().units(kind)
        return Units(self.shape.ffn, {name: (dim, 1) for name, dim in SLICED.items()})

    def all_units(self, kind: Kind) -> Mapping[str, Units]:
        """Those of `units`, and experts with their router rows."""
        found = super().all_units(kind)
        if kind == "attention":
            return found
        return {**found, "experts": Units(self.shape.experts, {n: (0, 1) for n in ("router", *SLICED)})}

    def _shared(self, x: Tensor, weights: Weights) -> Tensor:
        names = ("shared_gate", "shared_up", "shared_down")
        gate, up, down = (weights[name] for name in names)
        inner = self._activation(self._linear(x, gate)).mul_(self._linear(x, up))
        return self._linear(inner, down) * self._linear(x, weights["shared_router"]).sigmoid()

    def _sizes(self, config: Any, blocks: int) -> Shape:
        experts, used = (
            getattr(config, str(n)) for n in (self.layout.experts, self.layout.experts_per_token)
        )
        shared = int(getattr(config, "shared_expert_intermediate_size", 0))
        return replace(
            super()._sizes(config, blocks), experts=experts, experts_per_token=used, shared_ffn=shared
        )
