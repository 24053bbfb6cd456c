# these classes are mixed into a family's own:
# mypy: disable-error-code="no-untyped-call, misc, call-arg"
"""Encoders whose blocks differ in size: what all families share; each family's own file adds its classes.

The files travel inside checkpoints and need torch and transformers only. `config.per_layer_config[i]` holds the
sizes of block `i`; `skip` in it names removed sublayers, "attention" or "mlp": they have no modules, not even a norm;
`keep_RULE` is the share of tokens, in per cent, that its attention hands on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from .modeling_autoprune import BlockConfig
from .tokens import RULES, Alive, attend, mask_of, reduce


class MixedEncoderConfig:
    """Mixed in before a family's config: exceptions per block; the heads need not divide the hidden size."""

    def skips(self: Any, block: int, sublayer: str) -> bool:
        """Whether a sublayer ("attention" or "mlp") of a block is removed."""
        return sublayer in getattr(self.per_layer_config[block], "skip", ())

    def cuts(self) -> dict[int, Any]:
        """Policies of KV caches, which an encoder does not have."""
        return {}

    def keeps(self: Any, block: int) -> tuple[str, int] | None:
        """By which rule a block drops tokens, and how many per cent it keeps; None: all."""
        sizes = self.per_layer_config[block]
        found = [(rule, int(getattr(sizes, f"keep_{rule}", 100))) for rule in RULES]
        return next((keep for keep in found if keep[1] < 100), None)

    def validate(self: Any) -> None:
        """Run on saving too; the inherited one insists on checks that hold for equal blocks only."""


class MixedEncoderBlock:
    """Mixed in before a family's block: its own sizes; modules of a removed sublayer are None.

    `parts`: the modules of each sublayer; `projections`: those of queries, keys and values; `specials`: how many tokens
    at the front are never dropped.
    """

    parts: dict[str, tuple[str, ...]]
    projections: tuple[str, str, str]
    specials = 1

    def __init__(self: Any, config: Any, block: int) -> None:
        super().__init__(BlockConfig(config, block))
        self.skipped = [name for name in self.parts if config.skips(block, name)]
        self.keep = None if "attention" in self.skipped else config.keeps(block)
        self.resize(config.per_layer_config[block])
        for name in (name for sublayer in self.skipped for name in self.parts[sublayer]):
            setattr(self, name, None)

    def resize(self, sizes: Any) -> None:
        """For families whose own modules cannot be made with the sizes of this block."""

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *_: Any,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Hidden states [B, T, d] after what is left of the block."""
        for name in ("encoder_attention_mask", "past_key_values"):
            kwargs.pop(name, None)
        if "attention" not in self.skipped:
            hidden_states = self.attend(hidden_states, attention_mask, **kwargs)
        if "mlp" not in self.skipped:
            hidden_states = self.feed(hidden_states)
        return hidden_states

    def step(self: Any, alive: Alive, **kwargs: Any) -> Alive:
        """As `forward`, for tokens that some blocks drop."""
        if self.keep is None:
            return replace(alive, hidden=self(alive.hidden, mask_of(alive), **kwargs))
        entered = self.enter(alive.hidden)
        shape, modules = (*entered.shape[:2], -1, self.head_size()), map(self.get_submodule, self.projections)
        query, key, value = (module(entered).view(shape).transpose(1, 2) for module in modules)
        context, attention = attend(query, key, value, mask_of(alive), self.head_size() ** -0.5)
        alive = replace(alive, hidden=self.leave(context, alive.hidden))
        alive, _ = reduce(*self.keep, alive, attention, key, self.specials)
        return alive if "mlp" in self.skipped else replace(alive, hidden=self.feed(alive.hidden))

    def enter(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """What the projections read; families that norm before do so here."""
        return hidden_states


class Blocks(nn.ModuleList):
    """Blocks some of which drop tokens: to a loop over them they are one, as only here is known who is alive."""

    def __iter__(self) -> Iterator[Any]:
        yield self.through

    def through(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None, *_: Any, **kwargs: Any
    ) -> torch.Tensor:
        """Hidden states [B, T', d] of the tokens that are left."""
        valid = None
        if attention_mask is not None:  # True, or 0, where a token may be looked at
            row = attention_mask[:, 0, 0].expand(len(hidden_states), -1)
            valid = row if row.dtype is torch.bool else row >= 0
        alive = Alive(hidden_states, valid)
        for at in range(len(self)):
            block: Any = self[at]
            alive = block.step(alive, **kwargs)
        return alive.hidden


@contextmanager
def without_blocks(config: Any) -> Iterator[None]:
    """Meanwhile the config describes a model without blocks, so that the family's own class makes all else."""
    count, sizes = config.num_hidden_layers, config.__dict__.pop("_heterogeneity_spec")
    config.num_hidden_layers = 0
    try:
        yield
    finally:
        config.num_hidden_layers = count
        config._heterogeneity_spec = sizes


class MixedEncoder:
    """Mixed in before a family's classifier; `place` is where its list of blocks stands, `block` their class."""

    block: type
    place: str

    def __init__(self: Any, config: Any) -> None:
        with without_blocks(config):
            super().__init__(config)
        owner, _, name = self.place.rpartition(".")
        blocks = [self.block(config, i) for i in range(config.num_hidden_layers)]
        stack = Blocks if any(block.keep for block in blocks) else nn.ModuleList
        setattr(attrgetter(owner)(self), name, stack(blocks))
        self._no_split_modules = [self.block.__name__]
        self.post_init()
