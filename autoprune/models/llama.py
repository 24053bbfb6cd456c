"""The Llama family: grouped-query attention, gated FFN, RMSNorm, rotary positions."""

from __future__ import annotations

from transformers import LlamaForCausalLM

from autoprune.export.modeling.modeling_autoprune_llama import AutopruneLlamaForCausalLM
from autoprune.models.decoder import Decoder
from autoprune.models.layout import ATTENTION, FFN, Layout


class LlamaAdapter(Decoder):
    """Runs and slices a `LlamaForCausalLM`."""

    layout = Layout(LlamaForCausalLM, AutopruneLlamaForCausalLM, ATTENTION, FFN)
