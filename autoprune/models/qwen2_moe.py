"""The Qwen2-MoE family: a Qwen2 with experts and a shared one that every token uses through a gate of its own."""

from __future__ import annotations

from transformers import Qwen2MoeForCausalLM

from autoprune.export.modeling.modeling_autoprune_qwen2_moe import AutopruneQwen2MoeForCausalLM
from autoprune.models.experts import ROUTED, STACKED, ExpertDecoder
from autoprune.models.layout import ATTENTION, Layout
from autoprune.models.qwen2 import Qwen2Adapter

SHARED = {
    "mlp.shared_expert.gate_proj": ("shared_gate",),
    "mlp.shared_expert.up_proj": ("shared_up",),
    "mlp.shared_expert.down_proj": ("shared_down",),
    "mlp.shared_expert_gate": ("shared_router",),
}


class Qwen2MoeAdapter(ExpertDecoder, Qwen2Adapter):
    """Runs and slices a `Qwen2MoeForCausalLM`; the shared expert stays whole."""

    layout = Layout(
        Qwen2MoeForCausalLM,
        AutopruneQwen2MoeForCausalLM,
        ATTENTION,
        {**ROUTED, **SHARED},
        stacked=STACKED,
        width="moe_intermediate_size",
        experts="num_experts",
        experts_per_token="num_experts_per_tok",
    )
