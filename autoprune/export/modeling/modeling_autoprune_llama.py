# transformers' helpers are untyped:
# mypy: disable-error-code="no-untyped-call, untyped-decorator"
"""A Llama whose blocks differ in size: KV groups and FFN width per block, removed sublayers.

This file travels inside checkpoints and needs torch and transformers only. `config.per_layer_config[i]` holds
the sizes of block `i`; `skip` in it names removed sublayers, "attention" or "mlp": they have no modules, not
even a norm.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Cache, DynamicCache, LlamaConfig, LlamaForCausalLM, LlamaPreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaMLP,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

if not hasattr(LlamaConfig, "per_layer_config"):
    raise ImportError("autoprune_llama checkpoints need transformers >= 5.15 (per_layer_config)")


class AutopruneLlamaConfig(LlamaConfig):
    """Llama sizes with exceptions per block; the heads need not divide the hidden size."""

    model_type = "autoprune_llama"

    def __post_init__(self, **kwargs: Any) -> None:
        """Derive `layer_types`, by which caches know the blocks that store nothing."""
        super().__post_init__(**kwargs)
        blocks = range(self.num_hidden_layers)
        types = ["moe" if self.skips(i, "attention") else "full_attention" for i in blocks]
        if types and "full_attention" not in types:
            types[0] = "full_attention"  # keeps the count of tokens, see AutopruneLlamaModel._count
        self.layer_types = types
        self.validate()

    def skips(self, block: int, sublayer: str) -> bool:
        """Whether a sublayer ("attention" or "mlp") of a block is removed."""
        return sublayer in getattr(self.per_layer_config[block], "skip", ())

    def validate(self) -> None:
        """Run on saving too; the inherited one insists on the checks of LlamaConfig itself."""
        self.validate_layer_type()
        self.validate_architecture()

    def validate_architecture(self) -> None:
        """Query heads are shared out evenly over KV groups in every block."""
        for i, sizes in enumerate(self.per_layer_config):
            if sizes.num_attention_heads % sizes.num_key_value_heads:
                raise ValueError(
                    f"block {i}: num_attention_heads ({sizes.num_attention_heads}) is not a multiple of "
                    f"num_key_value_heads ({sizes.num_key_value_heads})"
                )


class AutopruneLlamaDecoderLayer(GradientCheckpointingLayer):
    """One block with its own sizes; a removed sublayer is None."""

    def __init__(self, config: AutopruneLlamaConfig, block: int) -> None:
        super().__init__()
        sizes: Any = config.per_layer_config[block]
        self.self_attn: Any = None
        self.input_layernorm: Any = None
        self.mlp: Any = None
        self.post_attention_layernorm: Any = None
        if not config.skips(block, "attention"):
            self.self_attn = LlamaAttention(sizes, block)
            self.self_attn.config = config  # the model's own, so that a later switch of the kernel reaches it
            self.input_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        if not config.skips(block, "mlp"):
            self.mlp = LlamaMLP(sizes)
            self.mlp.config = config
            self.post_attention_layernorm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.gone = self.self_attn is None and self.mlp is None

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Hidden states [B, T, d] after what is left of the block."""
        if self.self_attn is not None:
            attended, _ = self.self_attn(
                hidden_states=self.input_layernorm(hidden_states),
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                position_embeddings=position_embeddings,
                **kwargs,
            )
            hidden_states = hidden_states + attended
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states


class AutopruneLlamaPreTrainedModel(LlamaPreTrainedModel):
    """What loading and hooks need to know."""

    config_class = AutopruneLlamaConfig
    config: AutopruneLlamaConfig
    _no_split_modules = ["AutopruneLlamaDecoderLayer"]
    _can_record_outputs = {"hidden_states": AutopruneLlamaDecoderLayer, "attentions": LlamaAttention}


class AutopruneLlamaModel(AutopruneLlamaPreTrainedModel):
    """The stack of blocks."""

    _output_capturing_hooks_installed = False

    def __init__(self, config: AutopruneLlamaConfig) -> None:
        super().__init__(config)
        blocks = range(config.num_hidden_layers)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, config.pad_token_id)
        self.layers = nn.ModuleList(AutopruneLlamaDecoderLayer(config, i) for i in blocks)
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False
        attending = [i for i in blocks if not config.skips(i, "attention")]
        self.attends = bool(attending)
        self.first = attending[0] if attending else 0  # the cache slot that knows the number of tokens
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Last hidden state [B, T, d] and the cache."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        elif past_key_values is not None and not past_key_values.layers:
            # made without a config: its first slot would stay empty where block 0 has no attention
            past_key_values.layers = DynamicCache(config=self.config).layers
        arguments: dict[str, Any] = {}
        if self.attends:
            arguments = self._positions(hidden, attention_mask, position_ids, past_key_values)
        elif past_key_values is not None:
            self._count(hidden, past_key_values)
        for layer in self.layers:
            # a block without sublayers is only called for the hooks that record hidden states
            if not layer.gone or self._output_capturing_hooks_installed:
                hidden = layer(hidden, past_key_values=past_key_values, **arguments, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden), past_key_values=past_key_values)

    def _positions(
        self,
        hidden: torch.Tensor,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
    ) -> dict[str, Any]:
        """Mask, positions and rotary embedding, counted in the first cache slot that is filled."""
        if position_ids is None:
            past = 0 if past_key_values is None else past_key_values.get_seq_length(self.first)
            position_ids = (torch.arange(hidden.shape[1], device=hidden.device) + past).unsqueeze(0)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            layer_idx=self.first,
        )
        rotary = self.rotary_emb(hidden, position_ids=position_ids)
        return {"attention_mask": mask, "position_ids": position_ids, "position_embeddings": rotary}

    def _count(self, hidden: torch.Tensor, past_key_values: Cache) -> None:
        """Without any attention nobody fills the cache, yet `generate` asks it how many tokens were seen."""
        tick = hidden.new_zeros(hidden.shape[0], 1, hidden.shape[1], 1)
        past_key_values.update(tick, tick, 0)


class AutopruneLlamaForCausalLM(AutopruneLlamaPreTrainedModel, LlamaForCausalLM):
    """`LlamaForCausalLM` over blocks of different sizes."""

    def __init__(self, config: AutopruneLlamaConfig) -> None:
        super(LlamaForCausalLM, self).__init__(config)  # past the stock one, which builds equal blocks
        self.model = AutopruneLlamaModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()
