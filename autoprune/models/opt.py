"""The OPT family: LayerNorm before each sublayer, biases, learned positions that start at 2, ReLU without a gate."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import OPTForCausalLM

from autoprune.errors import UnsupportedModelError
from autoprune.export.modeling.modeling_autoprune_opt import AutopruneOPTForCausalLM
from autoprune.models import norms
from autoprune.models.decoder import Decoder
from autoprune.models.layout import Layout

NEEDED = {
    "do_layer_norm_before": True,
    "layer_norm_elementwise_affine": True,
    "_remove_final_layer_norm": False,
}


class OPTAdapter(Decoder):
    """Runs and slices an `OPTForCausalLM`; every head is a KV group of its own."""

    layout = Layout(
        OPTForCausalLM,
        AutopruneOPTForCausalLM,
        attention={
            "self_attn_layer_norm": ("norm",),
            **{f"self_attn.{name}_proj": (name,) for name in ("q", "k", "v")},
            "self_attn.out_proj": ("o",),
        },
        ffn={"final_layer_norm": ("norm",), "fc1": ("up",), "fc2": ("down",)},
        blocks="model.decoder.layers",
        final_norm="model.decoder.final_layer_norm",
        activation="activation_function",
        eps=None,
        heads="kept_heads",
        groups=None,
        width="ffn_dim",
        fixed_heads=True,
    )
    norm = staticmethod(norms.layer)

    def check(self, config: Any) -> None:
        """Refuses the variants with norms elsewhere and with projected embeddings (opt-350m is both)."""
        for name, needed in NEEDED.items():
            if getattr(config, name) is not needed:
                raise UnsupportedModelError(
                    f"opt with {name}={getattr(config, name)} is not supported, only {needed}"
                )
        if config.word_embed_proj_dim != config.hidden_size:
            raise UnsupportedModelError(
                f"opt with word_embed_proj_dim={config.word_embed_proj_dim} is not supported, "
                f"only {config.hidden_size}, the hidden size"
            )

    def start(self, hidden: Tensor, positions: Tensor) -> Tensor:
        """Learned positions are added."""
        place = self.model.model.decoder.embed_positions
        return hidden + place(None, position_ids=positions)  # type: ignore[no-any-return]
