"""The first Gemma family: embeddings scaled by the root of the hidden size, norms around one, a GELU gate."""

from __future__ import annotations

from typing import Any

from transformers import GemmaForCausalLM

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_gemma import AutopruneGemmaForCausalLM
from autoprune.models import norms
from autoprune.models.decoder import Decoder
from autoprune.models.layout import ATTENTION, FFN, Layout


class GemmaAdapter(Decoder):
    """Runs and slices a `GemmaForCausalLM`; its embedding module does the scaling."""

    layout = Layout(GemmaForCausalLM, AutopruneGemmaForCausalLM, ATTENTION, FFN)
    norm = staticmethod(norms.rms_around_one)

    def check(self, config: Any) -> None:
        """Only causal attention is streamed."""
        if config.use_bidirectional_attention:
            raise UnsupportedModelError(
                "gemma with use_bidirectional_attention=true is not supported: set it to false"
            )
