"""Llama variants, and plans over them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from autoprune.models.llama import LlamaAdapter
from autoprune.space import KINDS
from tests import tiny

VARIANTS: dict[str, dict[str, Any]] = {
    "tied": {"tie_word_embeddings": True},
    "untied": {"tie_word_embeddings": False},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "multi_head": {"num_key_value_heads": tiny.HEADS},
    "one_group": {"num_key_value_heads": 1},
    "llama3_rope": {"rope_parameters": tiny.ROPE},
    "relu": {"hidden_act": "relu"},
}


@pytest.fixture(params=VARIANTS, scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    """A dense model of every variant."""
    return tiny.llama(blocks=2, **VARIANTS[request.param])


def stream(adapter: LlamaAdapter, ids: Tensor) -> Tensor:
    """Logits through the block stream with the dense weights."""
    with torch.inference_mode():
        state = adapter.embed(ids)
        for block in range(adapter.shape.blocks):
            for kind in KINDS:
                state = adapter.run_sublayer(block, kind, state, adapter.weights(block, kind))
        return adapter.head(state)


def stock(model: Any, ids: Tensor) -> Tensor:
    """Logits of the model's own forward."""
    with torch.inference_mode():
        return model(input_ids=ids, use_cache=False).logits


@pytest.fixture(scope="session")
def logits() -> SimpleNamespace:
    """Both ways to the logits; tests cannot import a conftest."""
    return SimpleNamespace(stream=stream, stock=stock)
