"""The Mistral family: a Llama whose blocks may attend to a window of tokens only."""

from __future__ import annotations

from typing import Any

from transformers import MistralForCausalLM

from autoprune.export.modeling.modeling_autoprune_mistral import AutopruneMistralForCausalLM
from autoprune.models.decoder import Decoder
from autoprune.models.layout import ATTENTION, FFN, Layout


class MistralAdapter(Decoder):
    """Runs and slices a `MistralForCausalLM`."""

    layout = Layout(MistralForCausalLM, AutopruneMistralForCausalLM, ATTENTION, FFN)

    def window(self, config: Any, block: int) -> int | None:
        """The same in all blocks."""
        return None if config.sliding_window is None else int(config.sliding_window)
