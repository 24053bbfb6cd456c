# mypy: disable-error-code="no-untyped-call, misc"
"""KV caches that throw away while decoding: what the slots of a `DynamicCache` share, whatever their policy.

It travels inside checkpoints and needs torch and transformers only. A slot keeps all of the prompt it is given first
until the prompt's own queries are done, then cuts it; every later token is decoded on what is left, joins it and makes
another one go. Such a slot attends by itself (`cut_attention`): what a policy keeps depends on queries, too.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "autoprune_cut"  # of the attention function, for transformers


class CutLayer(DynamicLayer):
    """A slot that attends by itself: `update` hands through what is new, `attend` takes it in.

    `seen` counts tokens, `held` names the tensors that grow with them. `sliding`: the model's own window.
    """

    is_croppable = False  # of tokens that came with the prompt
    held: tuple[str, ...] = ("keys", "values")
    keys: Any
    values: Any

    def __init__(self, sliding: int | None = None) -> None:
        super().__init__()
        self.seen, self.sliding = 0, sliding
        self.record_past, self.past = False, list[Any]()  # what the slot was before each step, once asked for

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """What is new, as it is; see `attend`."""
        return key_states, value_states

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention's output [B, heads, T, head_dim] of new tokens: a prompt at once, later ones each at its step."""
        if not self.is_initialized:
            self.dtype, self.device, self.is_initialized = key.dtype, key.device, True
            self.seen = key.shape[2]
            self.begin(query, key, value, scaling)
            return self._read(query, key, value, scaling)
        found = []
        for at in range(key.shape[2]):
            if self.record_past:
                self.past.append(self._state())
            self.seen += 1
            new = slice(at, at + 1)
            found.append(self.step(query[:, :, new], key[:, :, new], value[:, :, new], scaling))
        return torch.cat(found, dim=2)

    @abstractmethod
    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what is left of a prompt."""

    @abstractmethod
    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention's output for one token, [B, heads, 1, head_dim]; then something goes."""

    def _read(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        near = None if self.sliding is None else self.visible(torch.arange(key.shape[2], device=key.device))
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=near,
            is_causal=near is None,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )

    def visible(self, places: Tensor) -> Tensor:
        """Who of a prompt sees whom, [T, T]."""
        ago = places[:, None] - places
        return (ago >= 0) & (ago < (self.sliding or self.seen + 1))

    def near(self, places: Tensor, ahead: int = 0) -> Tensor:
        """Whom the newest token, or one `ahead` of it, sees by the model's own window."""
        return self.seen - 1 + ahead - places < (self.sliding or self.seen + 2)

    def get_seq_length(self) -> int:
        """Tokens seen, kept or not: positions are counted on."""
        return self.seen

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As if nothing had gone; the slot makes its own mask."""
        return self.seen + query_length, 0

    def activate_past_recording(self) -> None:
        """From now on steps can be taken back by `crop`; until then more is in memory."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last tokens, their number negative; those of before the last `crop` stay."""
        count = abs(tokens_to_remove)
        if count > len(self.past):
            raise ValueError(
                f"{count} tokens to take back, {len(self.past)} recorded: a KV cache that throws tokens away needs "
                "activate_past_recording() before them"
            )
        if count:
            self._restore(self.past[-count])
        self.past = []

    def _state(self) -> dict[str, Any]:
        """Steps replace tensors and never write into them."""
        return {k: v for k, v in vars(self).items() if k not in ("past", "record_past")}

    def _restore(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def reset(self) -> None:
        """Empty."""
        self.seen, self.is_initialized, self.past = 0, False, []
        for name in self.held:
            setattr(self, name, None)

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """For beam search."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        self._each(lambda tensor: tensor.index_select(0, indices.to(tensor.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row so many times."""
        self._each(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def _each(self, change: Any) -> None:
        for name in self.held if self.is_initialized else ():
            setattr(self, name, change(getattr(self, name)))


def products(query: Tensor, key: Tensor) -> Tensor:
    """Queries [B, heads, n, head_dim] times keys [B, groups, m, head_dim]: [B, groups, queries a group, n, m]."""
    grouped: Tensor = query.unflatten(1, (key.shape[1], -1))
    return grouped @ key[:, :, None].transpose(-1, -2)


def softmax(scores: Tensor, seen: Tensor) -> Tensor:
    """Attention probabilities over what is seen, computed in fp32."""
    return scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32).to(scores.dtype)


def mixed(share: Tensor, value: Tensor) -> Tensor:
    """Probabilities [B, groups, queries a group, n, m] over values [B, groups, m, head_dim]: [B, heads, n, hd]."""
    return (share @ value[:, :, None]).flatten(1, 2)


def cut_attention(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """An attention function of transformers: the slot's own where there is one, all before without a cache."""
    slot: CutLayer | None = kwargs.pop("slot", None)
    if slot is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return slot.attend(query, key, value, kwargs["scaling"]).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, cut_attention)
