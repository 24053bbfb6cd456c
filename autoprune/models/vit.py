"""The ViT family: patches of an image and a [CLS] token, LayerNorm before each sublayer, learned positions."""

from __future__ import annotations

from typing import Any

from transformers import ViTForImageClassification

from autoprune.export.modeling.modeling_autoprune_vit import AutopruneViTForImageClassification
from autoprune.models.encoder import ImageEncoder
from autoprune.models.layout import Layout


class ViTAdapter(ImageEncoder):
    """Runs and slices a `ViTForImageClassification`; every head is a KV group of its own."""

    layout = Layout(
        ViTForImageClassification,
        AutopruneViTForImageClassification,
        attention={
            "layernorm_before": ("norm",),
            **{f"attention.{name}_proj": (name,) for name in ("q", "k", "v", "o")},
        },
        ffn={"layernorm_after": ("norm",), "mlp.fc1": ("up",), "mlp.fc2": ("down",)},
        blocks="vit.layers",
        final_norm="vit.layernorm",
        eps="layer_norm_eps",
        groups=None,
        auto="AutoModelForImageClassification",
    )
    base = "vit"

    def scale(self, block: Any) -> float:
        """Of the head size that the model was made with."""
        return float(block.attention.scaling)
