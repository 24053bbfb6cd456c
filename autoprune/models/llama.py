"""The Llama family: grouped-query attention, gated FFN, RMSNorm, rotary positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from autoprune.errors import UnsupportedModelError
from autoprune.models.base import State, SublayerWeights, Units, Weights
from autoprune.models.linear import linear
from autoprune.shape import Shape
from autoprune.space import Kind, Plan

ATTENTION = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": "o_proj"}
FFN = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}


class LlamaAdapter:
    """Runs and slices a `LlamaForCausalLM`; `exact` runs the stock model's own linear map instead of the faster one."""

    def __init__(self, model: Any, exact: bool = False) -> None:
        self.model = model
        self._linear = functional.linear if exact else linear
        self.shape = _shape(model)
        self._eps = model.config.rms_norm_eps
        self._activation = model.model.layers[0].mlp.act_fn
        self._scale = self.shape.head_dim**-0.5
        self._dense = [{k: _weights(layer, k) for k in ("attention", "ffn")} for layer in model.model.layers]

    def embed(self, ids: Tensor) -> State:
        """Token ids [B, T] to hidden states; positions count from 0."""
        hidden = functional.embedding(ids, self.model.model.embed_tokens.weight)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        rope = self.model.model.rotary_emb(hidden, position_ids=positions)
        return State(hidden, positions, rope=rope)

    def inner(self, block: int, kind: Kind, state: State, weights: Weights) -> Tensor:
        """Attention's head outputs [B, T, heads x head_dim], or the FFN's gated activations [B, T, width]."""
        normed = self._norm(state.hidden, weights["norm"])
        if kind == "attention":
            return self._attend(normed, state, weights)
        gate = self._activation(self._linear(normed, weights["gate"], weights.get("gate_bias")))
        return gate.mul_(self._linear(normed, weights["up"], weights.get("up_bias")))  # type: ignore[no-any-return]

    def run_sublayer(self, block: int, kind: Kind, state: State, weights: Weights) -> State:
        """Residual plus the sublayer's output; the input state stays as it was."""
        name = "o" if kind == "attention" else "down"
        out = self._linear(
            self.inner(block, kind, state, weights), weights[name], weights.get(f"{name}_bias")
        )
        return replace(state, hidden=out.add_(state.hidden))

    def head(self, state: State) -> Tensor:
        """Logits [B, T, V] after the final norm."""
        normed = self._norm(state.hidden, self.model.model.norm.weight)
        return self._linear(normed, self.model.lm_head.weight)

    def weights(self, block: int, kind: Kind) -> Weights:
        """The dense weights of a sublayer: norm, q, k, v, o or norm, gate, up, down, and `*_bias` where there are."""
        return self._dense[block][kind]

    def units(self, kind: Kind) -> Units:
        """KV groups with their query heads, or FFN neurons."""
        if kind == "ffn":
            rows = {n: (0, 1) for n in ("gate", "up", "gate_bias", "up_bias")}
            return Units(self.shape.ffn, {**rows, "down": (1, 1)})
        key, query = self.shape.head_dim, self.shape.head_dim * self.shape.heads_per_group
        rows = {n: (0, key) for n in ("k", "v", "k_bias", "v_bias")}
        rows |= {n: (0, query) for n in ("q", "q_bias")}
        return Units(self.shape.kv_groups, {**rows, "o": (1, query)})

    def unit_setting(self, kind: Kind) -> str:
        """`kv_groups` or `width`."""
        return "kv_groups" if kind == "attention" else "width"

    def install(self, plan: Plan, weights: SublayerWeights, dtype: torch.dtype) -> Any:
        """A model that holds only what the plan keeps."""
        from autoprune.export.assemble import assemble

        return assemble(self.model, plan, weights, dtype)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, (hidden.shape[-1],), weight, self._eps)

    def _attend(self, normed: Tensor, state: State, weights: Weights) -> Tensor:
        batch, tokens, _ = normed.shape
        size = self.shape.head_dim
        assert state.rope is not None
        cos, sin = (r[:, None] for r in state.rope)

        def heads(name: str) -> Tensor:  # [B, heads, T, head_dim]
            flat = self._linear(normed, weights[name], weights.get(f"{name}_bias"))
            return flat.view(batch, tokens, -1, size).transpose(1, 2)

        query, key, value = _rotate(heads("q"), cos, sin), _rotate(heads("k"), cos, sin), heads("v")
        grouped = query.shape[1] != key.shape[1]
        out = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=self._scale, enable_gqa=grouped
        )
        return out.transpose(1, 2).reshape(batch, tokens, -1)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    turned = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + turned * sin


def _weights(layer: Any, kind: str) -> dict[str, Tensor]:
    norm = layer.input_layernorm if kind == "attention" else layer.post_attention_layernorm
    part, names = (layer.self_attn, ATTENTION) if kind == "attention" else (layer.mlp, FFN)
    found = {"norm": norm.weight.detach()}
    for short, name in names.items():
        linear = getattr(part, name)
        found[short] = linear.weight.detach()
        if linear.bias is not None:
            found[f"{short}_bias"] = linear.bias.detach()
    return found


def _shape(model: Any) -> Shape:
    config = model.config
    if config.num_attention_heads % config.num_key_value_heads:
        raise UnsupportedModelError("num_attention_heads must be a multiple of num_key_value_heads")
    dtype = str(getattr(model, "checkpoint_dtype", model.dtype)).removeprefix("torch.")
    return Shape(
        model_type=config.model_type,
        blocks=config.num_hidden_layers,
        hidden=config.hidden_size,
        heads=config.num_attention_heads,
        kv_groups=config.num_key_value_heads,
        head_dim=config.head_dim,
        ffn=config.intermediate_size,
        vocabulary=config.vocab_size,
        tied=bool(config.tie_word_embeddings),
        attention_bias=bool(config.attention_bias),
        ffn_bias=bool(config.mlp_bias),
        norm_params=config.hidden_size,
        bytes_per_value=getattr(torch, dtype).itemsize,
        dtype=dtype,
    )
