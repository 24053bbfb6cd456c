# mypy: disable-error-code="no-untyped-call, misc"
"""A Phi-3 whose blocks differ in size."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Phi3Config, Phi3ForCausalLM, Phi3Model
from transformers.models.phi3.modeling_phi3 import Phi3DecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutoprunePhi3Config(MixedConfig, Phi3Config):
    """Phi-3 sizes with exceptions per block."""

    model_type = "autoprune_phi3"

    def validate_rope(self) -> None:
        """The inherited one derives the size of a head from the number of heads, which differs between blocks."""


class AutoprunePhi3DecoderLayer(MixedBlock, Phi3DecoderLayer):
    """One block with its own sizes."""

    def dropped(self: Any, sublayer: str, out: torch.Tensor) -> torch.Tensor:
        """Dropout before the residual is added."""
        drop = self.resid_attn_dropout if sublayer == "attention" else self.resid_mlp_dropout
        return drop(out)  # type: ignore[no-any-return]


class AutoprunePhi3Model(MixedModel, Phi3Model):
    """The stack of blocks."""

    config_class = AutoprunePhi3Config
    block = AutoprunePhi3DecoderLayer


class AutoprunePhi3ForCausalLM(MixedForCausalLM, Phi3ForCausalLM):
    """`Phi3ForCausalLM` over blocks of different sizes."""

    config_class = AutoprunePhi3Config
    stack = AutoprunePhi3Model
