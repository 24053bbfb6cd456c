# mypy: disable-error-code="no-untyped-call, misc"
"""Fewer prompt tokens from block to block, for good or with their return: LazyLLM (arXiv 2407.14057), step by step.

It travels inside checkpoints and needs torch and transformers only. An attention hands on those prompt tokens that the
newest token looks at most, mean over heads; the last prompt token always stays. The prompt is read like that. Where
tokens go for good, later ones are decoded as ever on what each block has of the prompt. Where they return, every later
token chooses anew: what a block drops is put aside there as it is after its attention, and a token that a later step
wants goes on from there, through blocks where it has not been, at most once through each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .modeling_autoprune_cache import CutLayer, mixed, products, softmax


@dataclass(frozen=True)
class Running:
    """The tokens that go through a block now, the newest last, and which of the prompt they may look at.

    places [B, m] in the sequence, rising; real [B, m]: False where a row of the batch has fewer, and another token
    stands in; alive [B, n]: prompt tokens in sight, rising. `prompt` tokens were read at once.
    """

    places: Tensor
    real: Tensor
    alive: Tensor
    prompt: int
    reading: bool  # the prompt itself: who runs is who is in sight


class ReadLayer(CutLayer):
    """A slot that hands on `keep` per cent of the prompt tokens in sight, those the newest token looks at most."""

    def __init__(self, keep: int, sliding: int | None = None) -> None:
        super().__init__(sliding)
        self.keep = keep
        self.now: Any = None  # Running
        self.looks: Any = None  # [B, n]: how much the newest token looks at each prompt token in sight

    def _chosen(self, now: Running) -> Tensor:
        """Places among the prompt tokens in sight, rising."""
        worth = self.looks.clone()
        worth[:, -1] = torch.inf
        count = -(-worth.shape[1] * self.keep // 100)
        found: Tensor = worth.argsort(dim=1, descending=True, stable=True)[:, :count].sort(1).values
        return found

    def _look(self, query: Tensor, key: Tensor, scaling: float) -> None:
        """Rank what the prompt's last token sees of it."""
        if self.keep < 100:
            scores = products(query[:, :, -1:], key) * scaling
            self._rank(softmax(scores, self._sight(self.now)[..., -1:, :]))

    def _rank(self, share: Tensor) -> None:
        self.looks = share[..., 0, : self.now.alive.shape[1]].float().mean((1, 2))

    def _columns(self, now: Running) -> Tensor:
        """The places that the running tokens see, [B, n]."""
        return now.places

    def _sight(self, now: Running) -> Tensor:
        """Who sees whom, [B, 1, 1, m, columns]."""
        ago = now.places[:, :, None] - self._columns(now)[:, None]
        return ((ago >= 0) & (ago < (self.sliding or self.seen + 1)))[:, None, None]

    def _read(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        near = None if self.sliding is None else self._sight(self.now)[:, 0]
        return _attention(query, key, value, scaling, near, causal=near is None)


class KeptPromptLayer(ReadLayer):
    """A slot with keys and values of those prompt tokens that came here, and of all later ones; `places` [B, n]."""

    held = ("keys", "values", "places")
    places: Any = None

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what came."""
        self.seen = self.now.prompt
        self.keys, self.values, self.places = key, value, self.now.places
        self._look(query, key, scaling)

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """One token, on all that is here."""
        self.keys, self.values = torch.cat((self.keys, key), 2), torch.cat((self.values, value), 2)
        near = None
        if self.sliding is not None:
            newest = self.places.new_full((len(self.places), 1), self.seen - 1)
            self.places = torch.cat((self.places, newest), 1)
            near = self.near(self.places)[:, None, None]
        return _attention(query, self.keys, self.values, scaling, near, causal=False)

    def drop(self, hidden: Tensor, now: Running) -> tuple[Tensor, Running]:
        """What goes on of a prompt's tokens [B, m, d] after the attention."""
        at = self._chosen(now)
        places, real = now.places.gather(1, at), now.real.gather(1, at)
        left = hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[2]))
        return left, replace(now, places=places, real=real, alive=places)


class PromptLayer(ReadLayer):
    """A slot that has keys and values by place: of prompt tokens those that have been here, of later ones all.

    `aside` [B, prompt, d]: tokens as they are after this block's attention; `passed` [B, prompt]: those that went on.
    """

    aside: Any = None
    passed: Any = None

    def __init__(self, keep: int, sliding: int | None = None) -> None:
        super().__init__(keep, sliding)
        self.held = ("keys", "values", *(("aside", "passed") if keep < 100 else ()))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """Attention's output [B, heads, m, head_dim] of the running tokens, which are one step."""
        if self.now.reading:
            self.dtype, self.device, self.is_initialized = key.dtype, key.device, True
            self.seen = self.now.prompt
            self.begin(query, key, value, scaling)
            return self._read(query, key, value, scaling)
        if self.record_past:
            self.past.append(self._state())
        self.seen += 1
        return self.step(query, key, value, scaling)

    def begin(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        """Keep what a prompt has left of itself here."""
        self.keys, self.values = (_placed(x, self.now) for x in (key, value))
        self._look(query, key, scaling)

    def step(self, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """The newest token, and tokens that come back."""
        now: Running = self.now
        self.keys, self.values = _joined(self.keys, key, now), _joined(self.values, value, now)
        keys, values = (self._seen(x, now) for x in (self.keys, self.values))
        share = softmax(products(query, keys) * scaling, self._sight(now))
        if self.keep < 100:
            self._rank(share[..., -1:, :])
        return mixed(share, values)

    def _seen(self, held: Tensor, now: Running) -> Tensor:
        """What of the keys or values [B, groups, places, n] is in sight."""
        if now.alive.shape[1] == now.prompt:
            return held
        columns = self._columns(now)[:, None, :, None]
        return held.gather(2, columns.expand(-1, held.shape[1], -1, held.shape[3]))

    def drop(self, hidden: Tensor, now: Running) -> tuple[Tensor, Running]:
        """What goes on of tokens [B, m, d] after the attention, and of those that come back."""
        batch, old = len(hidden), slice(None) if now.reading else slice(0, -1)
        if now.reading:
            self.aside = hidden.new_zeros(batch, now.prompt, hidden.shape[2])
            self.passed = torch.zeros(batch, now.prompt, dtype=torch.bool, device=hidden.device)
        self.aside = _written(self.aside, hidden[:, old], now.places[:, old], now.real[:, old])
        alive = now.alive.gather(1, self._chosen(now))
        wanted = ~self.passed.gather(1, alive)
        some = wanted.long().argsort(dim=1, descending=True, stable=True)[:, : int(wanted.sum(1).max())]
        places, real = alive.gather(1, some), wanted.gather(1, some)
        self.passed = self.passed.scatter(1, alive, True)
        back = self.aside.gather(1, places[..., None].expand(-1, -1, hidden.shape[2]))
        if now.reading:
            return back, replace(now, places=places, real=real, alive=alive)
        places = torch.cat((places, now.places[:, -1:]), 1)
        real = torch.cat((real, now.real[:, -1:]), 1)
        return torch.cat((back, hidden[:, -1:]), 1), replace(now, places=places, real=real, alive=alive)

    def _columns(self, now: Running) -> Tensor:
        """The places that the running tokens see, [B, n + later tokens]."""
        if now.reading:
            return now.places
        later = torch.arange(now.prompt, self.keys.shape[2], device=now.alive.device)
        return torch.cat((now.alive, later.expand(len(now.alive), -1)), 1)


def _attention(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, mask: Tensor | None, *, causal: bool
) -> Tensor:
    """torch's own, [B, heads, T, head_dim]."""
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=causal,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def reads(model: Any, past: Any) -> bool:
    """Whether what comes goes through the blocks by `read`: prompts do, and later tokens where others may return."""
    return any(isinstance(past.layers[i], PromptLayer) for i in model.cuts) or not past.get_seq_length(
        model.counter
    )


def read(model: Any, hidden: Tensor, past: Any) -> Tensor:
    """Hidden states [B, T, d] after the blocks: zeros where a prompt token was dropped; later ones step by step."""
    slots = {block: past.layers[block] for block in model.cuts}
    seen, count = past.get_seq_length(model.counter), hidden.shape[1]
    if not seen:
        places = torch.arange(count, device=hidden.device).expand(len(hidden), -1)
        start = Running(places, torch.ones_like(places, dtype=torch.bool), places, count, True)
        left, now = _through(model, hidden, start, past, slots)
        where = now.places[..., None].expand_as(left)
        return torch.zeros_like(hidden).scatter(1, where, left)
    prompt = past.layers[model.counter].now.prompt
    steps = [_step(model, hidden[:, at : at + 1], seen + at, prompt, past, slots) for at in range(count)]
    return torch.cat(steps, 1)


def _step(model: Any, hidden: Tensor, at: int, prompt: int, past: Any, slots: dict[int, Any]) -> Tensor:
    """One token, which all of the prompt is in sight of when it enters."""
    batch = len(hidden)
    places = torch.full((batch, 1), at, device=hidden.device)
    alive = torch.arange(prompt, device=hidden.device).expand(batch, -1)
    start = Running(places, torch.ones_like(places, dtype=torch.bool), alive, prompt, False)
    return _through(model, hidden, start, past, slots)[0][:, -1:]


def _through(
    model: Any, hidden: Tensor, now: Running, past: Any, slots: dict[int, Any]
) -> tuple[Tensor, Running]:
    """All blocks."""
    around = _around(model, hidden, now)
    for at, layer in enumerate(getattr(model, model.blocks)):
        slot = slots.get(at)
        if slot is not None:
            slot.now = now
            hidden = layer.attended(hidden, past_key_values=past, attention_mask=None, slot=slot, **around)
            if slot.keep < 100:
                hidden, now = slot.drop(hidden, now)
                around = _around(model, hidden, now)
        hidden = layer.fed(hidden)
    return hidden, now


def _around(model: Any, hidden: Tensor, now: Running) -> dict[str, Any]:
    """Positions, and what is rotated by them."""
    found: dict[str, Any] = {"position_ids": now.places}
    if hasattr(model, "rotary_emb"):
        found["position_embeddings"] = model.rotary_emb(hidden, position_ids=now.places)
    return found


def _placed(rows: Tensor, now: Running) -> Tensor:
    """Rows [B, groups, m, n] of a prompt by their places, zeros elsewhere."""
    empty = rows.new_zeros(*rows.shape[:2], now.prompt, rows.shape[3])
    return empty.scatter(2, now.places[:, None, :, None].expand_as(rows), rows)


def _joined(held: Tensor, rows: Tensor, now: Running) -> Tensor:
    """What is held [B, groups, places, n] with rows of tokens that come back, and with that of the newest."""
    if rows.shape[2] == 1:
        return torch.cat((held, rows), 2)
    back = rows[:, :, :-1].transpose(1, 2).flatten(2)
    flat = _written(held.transpose(1, 2).flatten(2), back, now.places[:, :-1], now.real[:, :-1])
    old = flat.unflatten(2, (held.shape[1], held.shape[3])).transpose(1, 2)
    return torch.cat((old, rows[:, :, -1:]), 2)


def _written(held: Tensor, rows: Tensor, places: Tensor, real: Tensor) -> Tensor:
    """A copy of what is held [B, places, n] with real rows [B, m, n] at their places; itself where there are none."""
    if not rows.shape[1]:
        return held
    where = places[..., None].expand_as(rows)
    return held.scatter(1, where, torch.where(real[..., None], rows, held.gather(1, where)))
