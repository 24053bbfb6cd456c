"""A tiny Llama and the physically smaller models of its plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from autoprune.export.assemble import assemble
from autoprune.hardware import measuring
from autoprune.hardware.measuring import measure_table
from autoprune.hardware.table import LatencyTable
from autoprune.hardware.timing import Samples
from autoprune.hardware.workload import metrics_of
from autoprune.models import adapter_for
from autoprune.shape import Shape
from autoprune.space import Plan, SublayerPlan
from autoprune.sublayers import SublayerSpace
from tests.hardware.imagined import SKEW, WORK


@pytest.fixture(scope="session")
def dense() -> Any:
    """Two blocks, two KV groups of two heads, FFN width 32."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=64, num_hidden_layers=2, max_position_embeddings=64, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def shape() -> Shape:
    """The sizes of `dense`."""
    return Shape(
        "llama", 2, 16, 4, 2, 4, 32, 64, tied=False, norm_params=16, bytes_per_value=4, dtype="float32"
    )


@pytest.fixture(scope="session")
def build(dense: Any) -> Callable[[Plan], PreTrainedModel]:
    """Plan -> smaller model, keeping the first groups and the first neurons."""

    def weights(block: int, plan: SublayerPlan) -> Mapping[str, Tensor]:
        layer = dense.model.layers[block]
        if plan.kind == "ffn":
            n, mlp = int(plan.get("width")), layer.mlp
            inward = {"gate": mlp.gate_proj.weight[:n], "up": mlp.up_proj.weight[:n]}
            return inward | {
                "down": mlp.down_proj.weight[:, :n],
                "norm": layer.post_attention_layernorm.weight,
            }
        keys, attention = 4 * int(plan.get("kv_groups")), layer.self_attn
        kv = {"k": attention.k_proj.weight[:keys], "v": attention.v_proj.weight[:keys]}
        q, o = attention.q_proj.weight[: 2 * keys], attention.o_proj.weight[:, : 2 * keys]
        return kv | {"q": q, "o": o, "norm": layer.input_layernorm.weight}

    return lambda plan: assemble(adapter_for(dense), plan, weights, torch.float32)


@pytest.fixture
def imagined(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Measures a table of plans whose seconds a function tells, without any model."""

    def measure(shape: Shape, space: SublayerSpace, seconds: Any, options: Any, **named: Any) -> LatencyTable:
        def fake(models: Any, *_: Any) -> Any:
            return {
                n: {m: Samples((seconds(model.plan, m),) * 4) for m in metrics_of(shape.task)}
                for n, model in models.items()
            }

        monkeypatch.setattr(measuring, "sample_models", fake)
        monkeypatch.setattr(measuring, "routing_skew", lambda *_: SKEW)
        build: Any = lambda plan: SimpleNamespace(plan=plan, device="cpu", dtype=torch.float32)  # noqa: E731
        return measure_table(build, shape, space.full, options, WORK, **named)

    return measure
