"""The GPT-2 family: LayerNorm, biases, learned positions, weights stored as (in, out)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import GPT2LMHeadModel

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_gpt2 import AutopruneGPT2LMHeadModel
from autoprune.models import norms
from autoprune.models.decoder import Decoder
from autoprune.models.layout import Layout


class GPT2Adapter(Decoder):
    """Runs and slices a `GPT2LMHeadModel`; every head is a KV group of its own."""

    layout = Layout(
        GPT2LMHeadModel,
        AutopruneGPT2LMHeadModel,
        attention={"ln_1": ("norm",), "attn.c_attn": ("q", "k", "v"), "attn.c_proj": ("o",)},
        ffn={"ln_2": ("norm",), "mlp.c_fc": ("up",), "mlp.c_proj": ("down",)},
        blocks="transformer.h",
        final_norm="transformer.ln_f",
        transposed=frozenset({"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
        activation="activation_function",
        eps="layer_norm_epsilon",
        heads="kept_heads",
        groups=None,
        width="n_inner",
        fixed_heads=True,
    )
    norm = staticmethod(norms.layer)

    def check(self, config: Any) -> None:
        """Only a decoder on its own is streamed."""
        if config.add_cross_attention:
            raise UnsupportedModelError(
                "gpt2 with add_cross_attention=true is not supported: it needs an encoder"
            )

    def start(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Learned positions are added."""
        return hidden + self.model.transformer.wpe(positions)  # type: ignore[no-any-return]

    def scale(self, block: Any) -> float:
        """May differ between blocks."""
        return float(block.attn.scaling)
