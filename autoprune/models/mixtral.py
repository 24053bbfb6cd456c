"""The Mixtral family: a Mistral with experts, whose shares always sum to one."""

from __future__ import annotations

from typing import Any

from transformers import MixtralForCausalLM

from autoprune.export.modeling.modeling_autoprune_mixtral import AutopruneMixtralForCausalLM
from autoprune.models.experts import ROUTED, STACKED, ExpertDecoder
from autoprune.models.layout import ATTENTION, Layout
from autoprune.models.mistral import MistralAdapter


class MixtralAdapter(ExpertDecoder, MistralAdapter):
    """Runs and slices a `MixtralForCausalLM`."""

    layout = Layout(
        MixtralForCausalLM,
        AutopruneMixtralForCausalLM,
        ATTENTION,
        ROUTED,
        stacked=STACKED,
        experts="num_local_experts",
        experts_per_token="num_experts_per_tok",
    )

    def normalised(self, config: Any) -> bool:
        """No setting changes it."""
        return True
