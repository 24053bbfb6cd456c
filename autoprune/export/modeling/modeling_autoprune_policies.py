# mypy: disable-error-code="no-untyped-call, misc"
"""The policies by which KV caches throw tokens away, one class each; they travel inside checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Cache

from .modeling_autoprune_cache import CutLayer, mixed, products, softmax
from .modeling_autoprune_prompt import KeptPromptLayer, PromptLayer

QUERIES = 512  # of a prompt whose attention is in memory at a time


class WindowLayer(CutLayer):
    """The first `sink` tokens and the newest, `budget` in all; everything where `budget` is None."""

    def __init__(self, budget: int | None, sink: int, sliding: int | None = None) -> None:
        super().__init__(sliding)
        self.budget, self.sink = budget, sink
        self.places: Any = None  # [n]

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what is left of a prompt."""
        self.keys, self.values = key, value
        self.places = torch.arange(key.shape[2], device=key.device)
        self._cut()

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token."""
        self.keys, self.values = torch.cat((self.keys, key), 2), torch.cat((self.values, value), 2)
        self.places = torch.cat((self.places, self.places.new_tensor([self.seen - 1])))
        share = softmax(products(query, self.keys) * scaling, self.near(self.places))
        out = mixed(share, self.values)
        self._cut()
        return out

    def _cut(self) -> None:
        count = self.keys.shape[2]
        if self.budget is not None and count > self.budget:
            newest = torch.arange(count - (self.budget - self.sink), count, device=self.places.device)
            left = torch.cat((torch.arange(self.sink, device=newest.device), newest))
            self.keys, self.values, self.places = (
                self.keys[:, :, left],
                self.values[:, :, left],
                self.places[left],
            )


class AccumulatedLayer(CutLayer):
    """The newest `recent` tokens and those that had most attention, `budget` in all, for each KV group its own."""

    held = ("keys", "values", "paid", "places")

    def __init__(self, budget: int, recent: int, forgetting: float, sliding: int | None = None) -> None:
        super().__init__(sliding)
        self.budget, self.recent, self.forgetting = budget, recent, forgetting
        self.paid: Any = None  # [B, groups, n]
        self.places: Any = None  # [B, groups, n], rising

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what is left of a prompt."""
        self.keys, self.values = key, value
        places = torch.arange(key.shape[2], device=key.device)
        seen, self.paid = self.visible(places), key.new_zeros(*key.shape[:3], dtype=torch.float32)
        for first in range(0, len(places), QUERIES):
            some = slice(first, first + QUERIES)
            share = softmax(products(query[:, :, some], key) * scaling, seen[some]).float()
            weight = self.forgetting ** (len(places) - 1 - places[some]).float()
            self.paid += (share.sum(2) * weight[:, None]).sum(-2)
        self.places = places.expand(*key.shape[:2], -1)
        if len(places) > self.budget:
            worth = self._worth()
            best = worth.topk(self.budget - self.recent, dim=-1).indices.sort(-1).values
            self._keep(torch.cat((best, self._newest(worth.shape[-1])), -1))

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token."""
        self.keys, self.values = torch.cat((self.keys, key), 2), torch.cat((self.values, value), 2)
        self.places = functional.pad(self.places, (0, 1), value=self.seen - 1)
        share = softmax(products(query, self.keys) * scaling, self.near(self.places)[:, :, None, None])
        self.paid = functional.pad(self.paid * self.forgetting, (0, 1)) + share.float().sum((2, 3))
        out = mixed(share, self.values)
        if self.keys.shape[2] > self.budget:
            left = torch.arange(self.keys.shape[2] - 1, device=key.device)
            self._keep(left + (left >= self._worth().argmin(-1, keepdim=True)))
        return out

    def _worth(self) -> Tensor:
        """Of the tokens that may go; least of those that the next one cannot see anyway."""
        old = slice(0, self.keys.shape[2] - self.recent)
        paid: Tensor = self.paid[..., old]
        return paid.masked_fill(~self.near(self.places[..., old], 1), -1.0)

    def _newest(self, first: int) -> Tensor:
        newest = torch.arange(first, self.keys.shape[2], device=self.places.device)
        return newest.expand(*self.places.shape[:2], -1)

    def _keep(self, left: Tensor) -> None:
        for name in ("keys", "values"):
            tensor = getattr(self, name)
            setattr(self, name, tensor.gather(2, left[..., None].expand(-1, -1, -1, tensor.shape[-1])))
        self.paid, self.places = self.paid.gather(2, left), self.places.gather(2, left)


class StreamingLayer(CutLayer):
    """The first `full_groups` KV groups keep everything, the others `sink` and `recent` tokens: two slots in one."""

    def __init__(self, full_groups: int, sink: int, recent: int, sliding: int | None = None) -> None:
        super().__init__(sliding)
        self.full = full_groups
        streaming = WindowLayer(sink + recent, sink, sliding)
        self.parts = (WindowLayer(None, 0, sliding), streaming) if full_groups else (streaming,)

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what is left of a prompt."""
        for part, (q, k, v) in zip(self.parts, self._split(query, key, value), strict=True):
            part.seen, part.is_initialized = self.seen, True
            part.begin(q, k, v, scaling)
        self._show()

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token."""
        found = []
        for part, (q, k, v) in zip(self.parts, self._split(query, key, value), strict=True):
            part.seen = self.seen
            found.append(part.step(q, k, v, scaling))
        self._show()
        return torch.cat(found, 1)

    def reset(self) -> None:
        """Empty."""
        super().reset()
        for part in self.parts:
            part.reset()

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "of_parts": [part._state() for part in self.parts]}

    def _restore(self, state: dict[str, Any]) -> None:
        for part, own in zip(self.parts, state["of_parts"], strict=True):
            part._restore(own)
        super()._restore({k: v for k, v in state.items() if k != "of_parts"})

    def _split(self, query: Tensor, key: Tensor, value: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
        heads = self.full * (query.shape[1] // key.shape[1])
        rest = (query[:, heads:], key[:, self.full :], value[:, self.full :])
        return [(query[:, :heads], key[:, : self.full], value[:, : self.full]), rest][-len(self.parts) :]

    def _show(self) -> None:
        """The first part stands for the slot."""
        self.keys, self.values = self.parts[0].keys, self.parts[0].values

    def _each(self, change: Any) -> None:
        for part in self.parts if self.is_initialized else ():
            part._each(change)
        self._show()


class KeyChannelsLayer(CutLayer):
    """Keys older than the newest `recent` keep `channels` of their channels, chosen when the prompt is read."""

    held = ("keys", "values", "old_keys", "chosen")

    def __init__(self, channels: int, recent: int, sliding: int | None = None) -> None:
        super().__init__(sliding)
        self.channels, self.recent = channels, recent
        self.old_keys: Any = None  # [B, groups, n - recent, channels]; `keys` are the newest, whole
        self.chosen: Any = None  # [B, groups, channels]

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Choose the channels and keep them."""
        queries = query[:, :, -self.recent :].unflatten(1, (key.shape[1], -1))
        worth = queries.float().square().mean((2, 3)) * key.float().square().mean(2)
        self.chosen = worth.topk(self.channels, dim=-1).indices
        self.keys, self.values = key, value
        self.old_keys = key.new_empty(*key.shape[:2], 0, self.channels)
        self._cut()

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token."""
        self.keys, self.values = torch.cat((self.keys, key), 2), torch.cat((self.values, value), 2)
        queries = query.unflatten(1, (key.shape[1], -1))
        some = queries.gather(-1, self.chosen[:, :, None, None].expand(-1, -1, queries.shape[2], 1, -1))
        old = some @ self.old_keys[:, :, None].transpose(-1, -2)
        scores = torch.cat((old, products(query, self.keys)), -1) * scaling
        share = softmax(scores, self.near(torch.arange(self.seen, device=key.device)))
        out = mixed(share, self.values)
        self._cut()
        return out

    def _cut(self) -> None:
        old = self.keys[:, :, : -self.recent]
        if old.shape[2]:
            some = old.gather(-1, self.chosen[:, :, None].expand(-1, -1, old.shape[2], -1))
            self.old_keys = torch.cat((self.old_keys, some), 2)
            self.keys = self.keys[:, :, -self.recent :].clone()  # else the whole keys stay in memory


LAYERS: Mapping[str, type[Any]] = {
    "window": WindowLayer,
    "accumulated": AccumulatedLayer,
    "streaming": StreamingLayer,
    "key_channels": KeyChannelsLayer,
    "prompt": PromptLayer,
    "kept_prompt": KeptPromptLayer,
}


def fit(cache: Cache, slots: Mapping[int, Mapping[str, Any]], windows: Mapping[int, int | None]) -> None:
    """Give a cache that holds nothing yet the slots of these policies, by block."""
    for block, settings in slots.items():
        if isinstance(cache.layers[block], CutLayer):
            continue
        if cache.get_seq_length(block):
            raise ValueError("this model drops tokens while it decodes: give it an empty cache, or none")
        own = {k: v for k, v in settings.items() if k != "policy"}
        cache.layers[block] = LAYERS[settings["policy"]](**own, sliding=windows[block])
