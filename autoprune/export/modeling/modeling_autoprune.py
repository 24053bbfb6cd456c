# transformers' helpers are untyped, and these classes are mixed into a family's own:
# mypy: disable-error-code="no-untyped-call, untyped-decorator, misc, call-arg"
"""Decoders whose blocks differ in size: what all families share; each family's own file adds its classes.

Both files travel inside checkpoints and need torch and transformers only. `config.per_layer_config[i]` holds the
sizes of block `i`; `skip` in it names removed sublayers, "attention" or "mlp": they have no modules, not even a norm.
`kv_cache` in it is the policy by which the block's KV cache throws tokens away, with its settings; `keep_prefill` is
the share of a prompt's tokens, in per cent, that its attention hands on, `keep_prompt` the same where what is dropped
never returns (`modeling_autoprune_prompt`).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .modeling_autoprune_cache import NAME
from .modeling_autoprune_policies import fit
from .modeling_autoprune_prompt import read, reads

if not hasattr(PreTrainedConfig, "per_layer_config"):
    raise ImportError(
        "checkpoints with blocks of different sizes need transformers >= 5.15 (per_layer_config)"
    )

UNUSED = ("token_type_ids", "encoder_hidden_states", "encoder_attention_mask")  # GPT-2 passes them on


class MixedConfig:
    """Mixed in before a family's config: exceptions per block; the heads need not divide the hidden size."""

    kv_cache = None  # of the blocks that say nothing about it: the cache keeps everything
    keep_prefill = keep_prompt = 100

    def __post_init__(self: Any, **kwargs: Any) -> None:
        """Derive `layer_types`, by which caches know the blocks that store nothing."""
        types = kwargs.pop("layer_types", None)
        super().__post_init__(**kwargs)
        usual = "full_attention" if getattr(self, "sliding_window", None) is None else "sliding_attention"
        blocks = range(self.num_hidden_layers)
        types = list(types or getattr(self, "layer_types", None) or [usual for _ in blocks])
        types = ["moe" if self.skips(i, "attention") else types[i] for i in blocks]
        if types and set(types) == {"moe"}:
            types[0] = "full_attention"  # keeps the count of tokens, see MixedModel._count
        self.layer_types = types
        if hasattr(self, "output_router_logits"):
            self.output_router_logits = (
                False  # the balancing loss is one of equally many experts in all blocks
            )
        self.validate()

    def skips(self: Any, block: int, sublayer: str) -> bool:
        """Whether a sublayer ("attention" or "mlp") of a block is removed."""
        return sublayer in getattr(self.per_layer_config[block], "skip", ())

    def cuts(self: Any) -> dict[int, Any]:
        """What KV caches keep, of those blocks whose cache does not keep everything."""
        found = {i: getattr(sizes, "kv_cache", None) for i, sizes in enumerate(self.per_layer_config)}
        return {i: settings for i, settings in found.items() if settings} or self.drops()

    def drops(self: Any) -> dict[int, Any]:
        """How many per cent of a prompt's tokens every attention hands on; nothing where all hand on all."""
        blocks = [i for i in range(self.num_hidden_layers) if not self.skips(i, "attention")]
        for name, policy in (("keep_prefill", "prompt"), ("keep_prompt", "kept_prompt")):
            found = {i: int(getattr(self.per_layer_config[i], name, 100)) for i in blocks}
            if any(keep < 100 for keep in found.values()):
                return {i: {"policy": policy, "keep": keep} for i, keep in found.items()}
        return {}

    def validate(self: Any) -> None:
        """Run on saving too; the inherited one insists on checks that hold for equal blocks only."""
        self.validate_layer_type()
        self.validate_architecture()

    def validate_architecture(self: Any) -> None:
        """Query heads are shared out evenly over KV groups in every block."""
        for i, sizes in enumerate(self.per_layer_config):
            groups = getattr(sizes, "num_key_value_heads", None) or 1
            if sizes.num_attention_heads % groups:
                raise ValueError(
                    f"block {i}: num_attention_heads ({sizes.num_attention_heads}) is not a multiple of "
                    f"num_key_value_heads ({groups})"
                )


class BlockConfig:
    """One block's sizes; all else is read from the model's config, so that a later switch of the kernel reaches it."""

    def __init__(self, config: Any, block: int) -> None:
        self._config = config
        for name in config.per_layer_attributes or ():
            setattr(self, name, getattr(config.per_layer_config[block], name))
        if block in config.cuts():
            self._attn_implementation = NAME

    def __getattr__(self, name: str) -> Any:
        if name == "_config" or name.startswith("__"):
            raise AttributeError(name)
        own = self._config.attribute_map.get(name, name)
        return vars(self)[own] if own in vars(self) else getattr(self._config, name)


class MixedBlock:
    """Mixed in before a family's block: its own sizes; modules of a removed sublayer are None.

    `parts`: the modules of each sublayer, its norm first.
    """

    parts: dict[str, tuple[str, ...]] = {
        "attention": ("input_layernorm", "self_attn"),
        "mlp": ("post_attention_layernorm", "mlp"),
    }

    def __init__(self: Any, config: Any, block: int) -> None:
        super().__init__(BlockConfig(config, block), block)
        self.skipped = [name for name in self.parts if config.skips(block, name)]
        self.gone = len(self.skipped) == len(self.parts)
        self.resize(config.per_layer_config[block])
        for name in (name for sublayer in self.skipped for name in self.parts[sublayer]):
            setattr(self, name, None)

    def resize(self, sizes: Any) -> None:
        """For families whose own modules cannot be made with the sizes of this block."""

    def forward(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states [B, T, d] after what is left of the block."""
        return self.fed(self.attended(hidden_states, **kwargs))  # type: ignore[no-any-return]

    def attended(self: Any, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        """Hidden states after the attention, where there is one."""
        if "attention" in self.skipped:
            return hidden_states
        norm, attention = (getattr(self, name) for name in self.parts["attention"])
        found = attention(norm(hidden_states), **kwargs)[0]
        return hidden_states + self.dropped("attention", found)  # type: ignore[no-any-return]

    def fed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """Hidden states after the FFN, where there is one."""
        if "mlp" in self.skipped:
            return hidden_states
        return hidden_states + self.dropped("mlp", self.feed(hidden_states))  # type: ignore[no-any-return]

    def feed(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """The FFN's output [B, T, d]."""
        norm, mlp = (getattr(self, name) for name in self.parts["mlp"])
        return mlp(norm(hidden_states))  # type: ignore[no-any-return]

    def dropped(self, sublayer: str, out: torch.Tensor) -> torch.Tensor:
        """For families that drop out before the residual is added."""
        return out


@contextmanager
def without_blocks(config: Any) -> Iterator[None]:
    """Meanwhile the config describes a model without blocks, so that the family's own class makes all else."""
    count, sizes, types = (
        config.num_hidden_layers,
        config.__dict__.pop("_heterogeneity_spec"),
        config.layer_types,
    )
    config.num_hidden_layers, config.layer_types = 0, []
    try:
        yield
    finally:
        config.num_hidden_layers, config.layer_types = count, types
        config._heterogeneity_spec = sizes


class MixedModel:
    """Mixed in before a family's stack of blocks. `blocks` and `last` name its list of blocks and its final norm."""

    block: type
    output: type[Any] = BaseModelOutputWithPast
    blocks = "layers"
    last = "norm"
    _output_capturing_hooks_installed = False

    def __init__(self: Any, config: Any) -> None:
        with without_blocks(config):
            super().__init__(config)
        if hasattr(self, "rotary_emb"):  # some kinds read the number of heads again on every call
            self.rotary_emb.config = BlockConfig(config, 0)
        blocks = range(config.num_hidden_layers)
        setattr(self, self.blocks, nn.ModuleList(self.block(config, i) for i in blocks))
        self.cuts, types = config.cuts(), config.layer_types
        self.drops = bool(config.drops())
        kinds = set(types) - {"moe"}
        self.counter = min(
            types.index(kind) for kind in kinds
        )  # a cache slot that knows the number of tokens
        # the first slot of each kind of attention; with a cache, the first that keeps everything
        self.kinds = {kind: types.index(kind) for kind in kinds}
        whole = [(kind, i) for i, kind in enumerate(types) if kind in kinds and i not in self.cuts]
        self.first = {kind: i for kind, i in reversed(whole)}
        self.attends = any(not config.skips(i, "attention") for i in blocks)
        self._no_split_modules = [self.block.__name__]
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Last hidden state [B, T, d] and the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        if given := [name for name in UNUSED if kwargs.pop(name, None) is not None]:
            raise ValueError(f"{given[0]} is not supported")
        embedded = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        self._fit(past_key_values, attention_mask)
        if position_ids is None:
            position_ids = self.positions(embedded, attention_mask, past_key_values)
        hidden = self.enter(embedded, position_ids)
        if self.drops and past_key_values is not None and reads(self, past_key_values):
            return self._left(read(self, hidden, past_key_values), past_key_values)
        masks, rotary = self._masks(embedded, attention_mask, position_ids, past_key_values)
        if not self.attends and past_key_values is not None:
            self._count(hidden, past_key_values)
        for i, (layer, kind) in enumerate(
            zip(getattr(self, self.blocks), self.config.layer_types, strict=True)
        ):
            # a block without sublayers is only called for the hooks that record hidden states
            if not layer.gone or self._output_capturing_hooks_installed:
                place = {"attention_mask": masks.get(kind), "position_ids": position_ids}
                if i in self.cuts and past_key_values is not None:
                    place["slot"] = past_key_values.layers[i]
                hidden = layer(hidden, past_key_values=past_key_values, **place, **rotary, **kwargs)
        return self._left(hidden, past_key_values)

    def _left(self: Any, hidden: torch.Tensor, past: Cache | None) -> Any:
        last = getattr(self, self.last)(hidden)
        return self.output(last_hidden_state=last, past_key_values=past)

    def enter(self, embedded: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        """What enters the first block, [B, T, d]; families with learned positions add them."""
        return embedded

    def positions(
        self: Any, embedded: torch.Tensor, attention_mask: torch.Tensor | None, past: Cache | None
    ) -> torch.Tensor:
        """Positions [1 or B, T], counted in a cache slot that is filled."""
        seen = 0 if past is None else past.get_seq_length(self.counter)
        return (torch.arange(embedded.shape[1], device=embedded.device) + seen).unsqueeze(0)

    def _masks(
        self: Any,
        embedded: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor,
        past: Cache | None,
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """The mask of each kind of attention, and the rotary embedding where there is one."""
        if not self.attends:
            return {}, {}
        makers = {
            "full_attention": create_causal_mask,
            "sliding_attention": create_sliding_window_causal_mask,
        }
        shared = {"config": self.config, "inputs_embeds": embedded, "attention_mask": attention_mask}
        shared |= {"past_key_values": past, "position_ids": position_ids}
        slots = self.kinds if past is None else self.first
        masks = {kind: makers[kind](**shared, layer_idx=slot) for kind, slot in slots.items()}
        if not hasattr(self, "rotary_emb"):
            return masks, {}
        return masks, {"position_embeddings": self.rotary_emb(embedded, position_ids=position_ids)}

    def _fit(self: Any, past: Cache | None, attention_mask: torch.Tensor | None) -> None:
        """Give a cache that is new the slots this model needs; where they throw tokens away, padding is refused."""
        if past is None:
            return
        if not past.layers:
            # made without a config: its first slot would stay empty where block 0 has no attention
            past.layers = DynamicCache(config=self.config).layers
        if not self.cuts:
            return
        if attention_mask is not None and attention_mask.ndim == 2 and not bool(attention_mask.all()):
            raise ValueError(
                "this model drops tokens while it decodes and knows no padding: give prompts of equal length"
            )
        types, window = self.config.layer_types, getattr(self.config, "sliding_window", None)
        fit(past, self.cuts, {i: window if types[i] == "sliding_attention" else None for i in self.cuts})

    def _count(self, hidden: torch.Tensor, past: Cache) -> None:
        """Without any attention nobody fills the cache, yet `generate` asks it how many tokens were seen."""
        tick = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        past.update(tick, tick, 0)


class MixedForCausalLM:
    """Mixed in before a family's language model; `stack` is the family's MixedModel, `place` where it stands."""

    stack: type
    place = "model"

    def __init__(self: Any, config: Any) -> None:
        with without_blocks(config):
            super().__init__(config)
        owner, _, name = self.place.rpartition(".")
        setattr(attrgetter(owner)(self) if owner else self, name, self.stack(config))
        self._no_split_modules = [self.stack.block.__name__]
        self.post_init()
