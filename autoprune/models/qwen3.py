"""The Qwen3 family: a Qwen2 without those biases whose query and key heads are normed."""

from __future__ import annotations

from transformers import Qwen3ForCausalLM

from autoprune.export.modeling.modeling_autoprune_qwen3 import AutopruneQwen3ForCausalLM
from autoprune.models.layout import ATTENTION, FFN, Layout
from autoprune.models.qwen2 import Qwen2Adapter

HEAD_NORMS = {"self_attn.q_norm": ("q_norm",), "self_attn.k_norm": ("k_norm",)}


class Qwen3Adapter(Qwen2Adapter):
    """Runs and slices a `Qwen3ForCausalLM`."""

    layout = Layout(Qwen3ForCausalLM, AutopruneQwen3ForCausalLM, {**ATTENTION, **HEAD_NORMS}, FFN)
