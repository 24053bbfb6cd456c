"""Every built-in family can be recovered, its mixed checkpoints too: other heads, biases, norms and embeddings."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from autoprune.models import adapter_for
from autoprune.recovery.distill import Distill, Distiller
from autoprune.recovery.lessons import Lessons
from autoprune.space import Plan, SublayerPlan
from tests.families import CASES, model_of

FIRST = {name: variant for name, variant in reversed(CASES)}  # one variant of each


def mixed(teacher: Any) -> Any:
    """A model whose blocks differ, one sublayer gone, in fp32."""
    adapter = adapter_for(teacher)
    shape = adapter.shape
    widths = [(shape.kv_groups, shape.ffn // 2)] * shape.blocks
    widths[0] = (shape.kv_groups, 0)

    def weights(block: int, kept: SublayerPlan) -> Any:
        count = int(kept.get(adapter.unit_setting(kept.kind)))
        return adapter.units(kept.kind).prefix(adapter.weights(block, kept.kind), count)

    return adapter.install(Plan.of(widths), weights, torch.float32)


@pytest.mark.parametrize("family", FIRST)
def test_a_few_steps_bring_it_nearer(family: str, go: Any, lessons: Lessons) -> None:
    teacher = model_of(family, FIRST[family])
    vocabulary = teacher.config.vocab_size
    shown = replace(lessons, windows=lessons.windows % vocabulary)
    ids = torch.from_numpy(shown.windows[:4]).long()

    def judge(model: Any) -> float:
        with torch.inference_mode():
            pair = [m(input_ids=ids, use_cache=False).logits for m in (teacher, model)]
            return float((pair[0] - pair[1]).square().mean())

    settings = Distill(steps=12, batch=4, learning_rate=5e-4, precision="fp32", check_every=4)
    done = go(Distiller(mixed(teacher), teacher, torch.float32, shown, settings, 0), judge=judge)
    kls = dict(done.checks)
    assert done.kept > 0 and kls[done.kept] < 0.95 * kls[0]
