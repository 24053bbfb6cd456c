"""What the families of decoders share: pre-norm blocks of attention over KV groups and an FFN."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from autoprune.errors import UnsupportedModelError
from autoprune.kv_policy import policy_of
from autoprune.models import norms
from autoprune.models.base import State, SublayerWeights, Units, Weights, added
from autoprune.models.caching import attend
from autoprune.models.layout import Layout
from autoprune.models.linear import linear
from autoprune.models.prompt_tokens import everyone, handed_on, sight
from autoprune.shape import Shape
from autoprune.space import KINDS, PREFILL, PROMPT, Kind, Plan, SublayerPlan, token_keep

LAYER_NORM_EPS = 1e-5  # torch's default


class Decoder:
    """Runs and slices a stock model; `exact` runs the stock model's own linear map instead of the faster one.

    A family names its `layout` and its `norm`, and overrides `check`, `start`, `scale` and `window` where it differs.
    """

    layout: ClassVar[Layout]
    norm = staticmethod(norms.rms)

    def __init__(self, model: Any, exact: bool = False) -> None:
        config, layout = model.config, self.layout
        self.model = model
        self.prompt_len: int | None = None  # set where a run scores what follows a prompt
        self.fed: Mapping[tuple[int, Kind], Weights] | None = None  # set where blocks are not on the device
        self.check(config)
        self._linear = functional.linear if exact else linear
        self._eps = LAYER_NORM_EPS if layout.eps is None else float(getattr(config, layout.eps))
        self._activation = ACT2FN[getattr(config, layout.activation)]
        self._rotary = getattr(model.get_submodule(layout.blocks.rpartition(".")[0]), "rotary_emb", None)
        self._last = model.get_submodule(layout.final_norm)
        blocks = list(model.get_submodule(layout.blocks))
        self._scales = [self.scale(block) for block in blocks]
        self.shape = self._sizes(config, len(blocks))
        rows = self._rows()
        self._dense = [{kind: layout.read(block, kind, rows) for kind in KINDS} for block in blocks]
        self.shape = self._counted(self.shape)

    @classmethod
    def layouts(cls) -> tuple[Layout, ...]:
        """The layouts of all classes of the family that it runs."""
        return (cls.layout,)

    def check(self, config: Any) -> None:
        """Raise UnsupportedModelError for a variant of the family that this adapter would get wrong."""

    def start(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """From embedded tokens [B, T, d] to what enters block 0; families with learned positions add them."""
        return hidden

    def scale(self, block: Any) -> float:
        """The factor of the attention scores in a stock block."""
        return float(block.self_attn.scaling)

    def window(self, config: Any, block: int) -> int | None:
        """How many tokens a block attends to; None: all."""
        return None

    def embed(self, ids: Tensor) -> State:
        """Token ids [B, T] to hidden states; positions count from 0."""
        ids = ids.to(self.model.device)
        positions = torch.arange(ids.shape[1], device=ids.device)[None]
        hidden = self.start(self.model.get_input_embeddings()(ids), positions)
        rope = None if self._rotary is None else self._rotary(hidden, position_ids=positions)
        return State(hidden, positions, rope=rope, prompt_len=self.prompt_len)

    def entering(self, block: int, kind: Kind, state: State, weights: Weights) -> Tensor:
        """The normed hidden states [B, T, d]: what q, k, v or gate and up see."""
        return self.norm(state.hidden, weights["norm"], weights.get("norm_bias"), self._eps)

    def inputs(self, ids: Tensor) -> dict[str, Any]:
        """What the stock model is called with."""
        return {"input_ids": ids.to(self.model.device), "use_cache": False}

    def inner(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """Attention's head outputs [B, T, heads x head_dim], or the FFN's (gated) activations [B, T, width]."""
        normed = self.entering(block, kind, state, weights)
        if kind == "attention":
            return self._attend(block, normed, state, weights, plan)
        up = self._apply("up", normed, weights)
        if "gate" not in weights:
            return self._activation(up)  # type: ignore[no-any-return]
        return self._activation(self._apply("gate", normed, weights)).mul_(up)  # type: ignore[no-any-return]

    def run_sublayer(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> State:
        """Residual plus the sublayer's output; the input state stays as it was."""
        left, keep = replace(state, hidden=self.summed(block, kind, state, weights, plan)), token_keep(plan)
        prompt, tokens = state.prompt_len, state.hidden.shape[1]
        if keep is None or keep[0] not in (PREFILL, PROMPT) or prompt is None or prompt >= tokens:
            return left
        return replace(left, alive=self._handed_on(block, state, weights, prompt, keep))

    def summed(
        self, block: int, kind: Kind, state: State, weights: Weights, plan: SublayerPlan | None = None
    ) -> Tensor:
        """The residual plus what the sublayer adds to it, [B, T, d]."""
        name = "o" if kind == "attention" else "down"
        out = self._apply(name, self.inner(block, kind, state, weights, plan), weights)
        return added(out, state.hidden)

    def head(self, state: State) -> Tensor:
        """Logits [B, T, V] after the final norm."""
        last = self._last
        normed = self.norm(state.hidden, last.weight, getattr(last, "bias", None), self._eps)
        return self._linear(normed, self.model.get_output_embeddings().weight)

    def weights(self, block: int, kind: Kind) -> Weights:
        """The dense weights of a sublayer: norm, q, k, v, o or norm, gate, up, down, and `*_bias` where there are."""
        return self._dense[block][kind] if self.fed is None else self.fed[block, kind]

    def units(self, kind: Kind) -> Units:
        """KV groups with their query heads, or FFN neurons. What is not sliced, like the bias of o, stays whole."""
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

    def all_units(self, kind: Kind) -> Mapping[str, Units]:
        """What `units` gives, by its plan setting, and the units of further settings where there are some."""
        return {self.unit_setting(kind): self.units(kind)}

    def install(self, plan: Plan, weights: SublayerWeights, dtype: torch.dtype) -> Any:
        """A model that holds only what the plan keeps."""
        from autoprune.export.assemble import assemble

        return assemble(self, plan, weights, dtype)

    def attention(self, block: int, state: State, weights: Weights) -> Tensor:
        """How much each token looks at each, [B, heads, T, T]: rows sum to one. What a pass never has in memory."""
        normed = self.norm(state.hidden, weights["norm"], weights.get("norm_bias"), self._eps)
        query, key = (self._heads(name, normed, state, weights) for name in ("q", "k"))
        scores = query @ key.repeat_interleave(query.shape[1] // key.shape[1], dim=1).transpose(-1, -2)
        tokens = scores.shape[-1]
        mask = _sliding(tokens, self.shape.windows[block], scores.device)
        if mask is None:
            mask = _causal(tokens, scores.device)
        return (scores * self._scales[block]).masked_fill(~mask, -torch.inf).softmax(-1)

    def project(self, name: str, normed: Tensor, weights: Weights) -> Tensor:
        """All heads' queries, keys or values side by side, [B, T, heads x head_dim]."""
        return self._apply(name, normed, weights)

    def _apply(self, name: str, x: Tensor, weights: Weights) -> Tensor:
        return self._linear(x, weights[name], weights.get(f"{name}_bias"))

    def _heads(self, name: str, normed: Tensor, state: State, weights: Weights) -> Tensor:
        """Queries, keys or values, [B, heads, T, head_dim]."""
        batch, tokens, _ = normed.shape
        found = self.project(name, normed, weights).view(batch, tokens, -1, self.shape.head_dim)
        if f"{name}_norm" in weights:
            found = self.norm(found, weights[f"{name}_norm"], None, self._eps)
        found = found.transpose(1, 2)
        return found if state.rope is None or name == "v" else _rotate(found, *state.rope)

    def _attend(
        self, block: int, normed: Tensor, state: State, weights: Weights, plan: SublayerPlan | None
    ) -> Tensor:
        batch, tokens, _ = normed.shape
        query, key, value = (self._heads(name, normed, state, weights) for name in ("q", "k", "v"))
        mask = self._seen(block, state)
        prompt, policy = state.prompt_len, None if plan is None else policy_of(plan)
        if policy is not None and prompt is not None and prompt < tokens:
            out = attend(policy, query, key, value, prompt, self._scales[block], mask)
            return out.transpose(1, 2).reshape(batch, tokens, -1)
        out = functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            is_causal=mask is None,
            scale=self._scales[block],
            enable_gqa=query.shape[1] != key.shape[1],
        )
        return out.transpose(1, 2).reshape(batch, tokens, -1)

    def _seen(self, block: int, state: State) -> Tensor | None:
        """Who sees whom, [T, T], or [B, 1, T, T] where prompt tokens were dropped; None: all before."""
        tokens, device = state.hidden.shape[1], state.hidden.device
        mask = _sliding(tokens, self.shape.windows[block], device)
        if state.alive is None:
            return mask
        return sight(state.alive, _causal(tokens, device) if mask is None else mask)

    def _handed_on(
        self, block: int, state: State, weights: Weights, prompt: int, keep: tuple[str, int]
    ) -> Tensor:
        """Prompt tokens in sight of the steps after an attention that drops some, [B, steps, prompt]."""
        batch, tokens, _ = state.hidden.shape
        device = state.hidden.device
        alive = everyone(batch, prompt, tokens, device) if state.alive is None else state.alive
        normed, seen = self.entering(block, "attention", state, weights), self._seen(block, state)
        seen = _causal(tokens, device) if seen is None else seen
        query, key = (self._heads(name, normed, state, weights) for name in ("q", "k"))
        seen = seen.expand(batch, 1, tokens, tokens)
        rule, percent = keep
        return handed_on(alive, query, key, seen, self._scales[block], percent, for_good=rule == PROMPT)

    def _rows(self) -> dict[str, int]:
        """Rows of what may share a parameter."""
        s = self.shape
        keys = s.kv_groups * s.head_dim
        return {"q": s.heads * s.head_dim, "k": keys, "v": keys, "gate": s.ffn, "up": s.ffn}

    def _sizes(self, config: Any, blocks: int) -> Shape:
        """What the config says."""
        heads = config.num_attention_heads
        groups = getattr(config, "num_key_value_heads", None) or heads
        if heads % groups:
            raise UnsupportedModelError("num_attention_heads must be a multiple of num_key_value_heads")
        dtype = str(getattr(self.model, "checkpoint_dtype", self.model.dtype)).removeprefix("torch.")
        return Shape(
            model_type=config.model_type,
            blocks=blocks,
            hidden=config.hidden_size,
            heads=heads,
            kv_groups=groups,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
            ffn=getattr(config, self.layout.width) or 4 * config.hidden_size,
            vocabulary=getattr(config, "vocab_size", 0),  # an image model has none
            tied=bool(getattr(config, "tie_word_embeddings", False)),
            windows=tuple(self.window(config, i) for i in range(blocks)),
            bytes_per_value=getattr(torch, dtype).itemsize,
            dtype=dtype,
        )

    def _counted(self, shape: Shape) -> Shape:
        """What the parameters say; all blocks are alike."""
        attention, ffn = (self._dense[0][kind] for kind in KINDS)
        norm = sum(p.numel() for p in self._last.parameters())
        inside = f"{self.layout.blocks}."
        outside = sum(p.numel() for n, p in self.model.named_parameters() if not n.startswith(inside))
        return replace(
            shape,
            gated="gate" in ffn,
            attention_bias="q_bias" in attention,
            output_bias="o_bias" in attention,
            ffn_bias="up_bias" in ffn,
            norm_params=norm,
            group_norm_params=sum(
                attention[n].numel() for n in ("q_whole_norm", "k_whole_norm") if n in attention
            )
            // shape.kv_groups,
            head_norm_params=sum(attention[n].numel() for n in ("q_norm", "k_norm") if n in attention),
            position_params=outside - norm - shape.vocabulary * shape.hidden * (1 if shape.tied else 2),
        )


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, heads, T, head_dim] turned by cos and sin [B, T, size]; what lies beyond `size` stays."""
    size, half = cos.shape[-1], cos.shape[-1] // 2
    cos, sin = cos[:, None], sin[:, None]
    turned = x[..., :size] * cos
    turned[..., :half].sub_(x[..., half:size] * sin[..., :half])  # halves in place: nothing is joined
    turned[..., half:].add_(x[..., :half] * sin[..., half:])
    return turned if size == x.shape[-1] else torch.cat((turned, x[..., size:]), dim=-1)


def _causal(tokens: int, device: torch.device) -> Tensor:
    """The mask [T, T] of all before."""
    return torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()


def _sliding(tokens: int, window: int | None, device: torch.device) -> Tensor | None:
    """The mask [T, T] of a causal window; None where the window holds all tokens."""
    if window is None or tokens <= window:
        return None
    ago = torch.arange(tokens, device=device)[:, None] - torch.arange(tokens, device=device)
    return (ago >= 0) & (ago < window)
