# these classes are mixed into a family's own:
# mypy: disable-error-code="no-untyped-call, misc, call-arg"
"""Encoders whose blocks differ in size: what all families share; each family's own file adds its classes.

The files travel inside checkpoints and need torch and transformers only. `config.per_layer_config[i]` holds the
sizes of block `i`; `skip` in it names removed sublayers, "attention" or "mlp": they have no modules, not even a norm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn

from .modeling_autoprune import BlockConfig


class MixedEncoderConfig:
    """Mixed in before a family's config: exceptions per block; the heads need not divide the hidden size."""

    def skips(self: Any, block: int, sublayer: str) -> bool:
        """Whether a sublayer ("attention" or "mlp") of a block is removed."""
        return sublayer in getattr(self.per_layer_config[block], "skip", ())

    def validate(self: Any) -> None:
        """Run on saving too; the inherited one insists on checks that hold for equal blocks only."""


class MixedEncoderBlock:
    """Mixed in before a family's block: its own sizes; modules of a removed sublayer are None.

    `parts`: the modules of each sublayer.
    """

    parts: dict[str, tuple[str, ...]]

    def __init__(self: Any, config: Any, block: int) -> None:
        super().__init__(BlockConfig(config, block))
        self.skipped = [name for name in self.parts if config.skips(block, name)]
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
        blocks = (self.block(config, i) for i in range(config.num_hidden_layers))
        setattr(attrgetter(owner)(self), name, nn.ModuleList(blocks))
        self._no_split_modules = [self.block.__name__]
        self.post_init()
