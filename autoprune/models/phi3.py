"""The Phi-3 family: one matrix for queries, keys and values, one for gate and up; a window where asked for."""

from __future__ import annotations

from transformers import Phi3ForCausalLM

from autoprune.export.modeling.modeling_autoprune_phi3 import AutoprunePhi3ForCausalLM
from autoprune.models.layout import Layout
from autoprune.models.mistral import MistralAdapter


class Phi3Adapter(MistralAdapter):
    """Runs and slices a `Phi3ForCausalLM`."""

    layout = Layout(
        Phi3ForCausalLM,
        AutoprunePhi3ForCausalLM,
        attention={
            "input_layernorm": ("norm",),
            "self_attn.qkv_proj": ("q", "k", "v"),
            "self_attn.o_proj": ("o",),
        },
        ffn={
            "post_attention_layernorm": ("norm",),
            "mlp.gate_up_proj": ("gate", "up"),
            "mlp.down_proj": ("down",),
        },
    )
