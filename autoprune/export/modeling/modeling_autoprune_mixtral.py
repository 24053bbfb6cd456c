# mypy: disable-error-code="no-untyped-call, misc"
"""A Mixtral whose blocks differ in size, in their number of experts too."""

from __future__ import annotations

from transformers import MixtralConfig, MixtralForCausalLM, MixtralModel
from transformers.modeling_outputs import MoeModelOutputWithPast
from transformers.models.mixtral.modeling_mixtral import MixtralDecoderLayer

from .modeling_autoprune import MixedBlock, MixedConfig, MixedForCausalLM, MixedModel


class AutopruneMixtralConfig(MixedConfig, MixtralConfig):
    """Mixtral sizes with exceptions per block."""

    model_type = "autoprune_mixtral"


class AutopruneMixtralDecoderLayer(MixedBlock, MixtralDecoderLayer):
    """One block with its own sizes."""


class AutopruneMixtralModel(MixedModel, MixtralModel):
    """The stack of blocks."""

    config_class = AutopruneMixtralConfig
    block = AutopruneMixtralDecoderLayer
    output = MoeModelOutputWithPast


class AutopruneMixtralForCausalLM(MixedForCausalLM, MixtralForCausalLM):
    """`MixtralForCausalLM` over blocks of different sizes."""

    config_class = AutopruneMixtralConfig
    stack = AutopruneMixtralModel
