"""The Qwen2 family: a Llama with biases on queries, keys and values, and windows in some blocks where asked for."""

from __future__ import annotations

from typing import Any

from transformers import Qwen2ForCausalLM

from autoprune.export.modeling.modeling_autoprune_qwen2 import AutopruneQwen2ForCausalLM
from autoprune.models.decoder import Decoder
from autoprune.models.layout import ATTENTION, FFN, Layout


class Qwen2Adapter(Decoder):
    """Runs and slices a `Qwen2ForCausalLM`."""

    layout = Layout(Qwen2ForCausalLM, AutopruneQwen2ForCausalLM, ATTENTION, FFN)

    def window(self, config: Any, block: int) -> int | None:
        """Each block has its kind of attention."""
        sliding = config.layer_types[block] == "sliding_attention"
        return int(config.sliding_window) if sliding else None
