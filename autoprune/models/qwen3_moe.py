"""The Qwen3-MoE family: a Qwen3 with experts; all blocks attend to one window where asked for."""

from __future__ import annotations

from transformers import Qwen3MoeForCausalLM

from autoprune.export.modeling.modeling_autoprune_qwen3_moe import AutopruneQwen3MoeForCausalLM
from autoprune.models.experts import ROUTED, STACKED, ExpertDecoder
from autoprune.models.layout import ATTENTION, Layout
from autoprune.models.mistral import MistralAdapter
from autoprune.models.qwen3 import HEAD_NORMS


class Qwen3MoeAdapter(ExpertDecoder, MistralAdapter):
    """Runs and slices a `Qwen3MoeForCausalLM`."""

    layout = Layout(
        Qwen3MoeForCausalLM,
        AutopruneQwen3MoeForCausalLM,
        {**ATTENTION, **HEAD_NORMS},
        ROUTED,
        stacked=STACKED,
        width="moe_intermediate_size",
        experts="num_local_experts",
        experts_per_token="num_experts_per_tok",
    )
