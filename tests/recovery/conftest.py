"""A tiny dense model, a smaller one cut from it, and a corpus of bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Split
from autoprune.recovery.distill import Distill, Distiller
from autoprune.recovery.lessons import Lessons
from autoprune.space import Plan, SublayerPlan
from tests import tiny

BLOCKS = 2
QUICK = Distill(steps=12, batch=2, learning_rate=3e-3, precision="fp32", check_every=6, save_every=5)


@pytest.fixture
def teacher() -> Any:
    """A dense model."""
    return tiny.llama(BLOCKS, noise=0.1)


@pytest.fixture
def student(teacher: Any) -> Any:
    """Half of its FFN and one KV group of each block, a sublayer gone, in fp32."""
    adapter = LlamaAdapter(teacher)
    plan = Plan.of([(1, tiny.FFN // 2), (1, 0)])

    def weights(block: int, kept: SublayerPlan) -> Any:
        units = adapter.units(kept.kind)
        count = int(kept.get(adapter.unit_setting(kept.kind)))
        return units.prefix(adapter.weights(block, kept.kind), count)

    return adapter.install(plan, weights, torch.float32)


@pytest.fixture
def lessons() -> Lessons:
    """Eleven windows of 12 tokens."""
    rows = np.random.default_rng(0).integers(0, tiny.VOCABULARY, (11, 12)).astype(np.int32)
    return Lessons(Split.TRAIN, rows)


@pytest.fixture
def make(teacher: Any, student: Any, lessons: Lessons) -> Callable[..., Distiller]:
    """A distiller of the student with quick settings, some of them changed."""

    def made(
        model: Any = None, seed: int = 0, dtype: torch.dtype = torch.float32, **changed: Any
    ) -> Distiller:
        return Distiller(model or student, teacher, dtype, lessons, replace(QUICK, **changed), seed)

    return made


@pytest.fixture
def judge(teacher: Any) -> Callable[[Any], float]:
    """Selection KL on a few random windows."""
    from autoprune.recovery.loss import logit_kl

    ids = tiny.token_ids((4, 12), seed=7)

    def kl(model: Any) -> float:
        with torch.inference_mode():
            pair = [m(input_ids=ids, use_cache=False).logits for m in (teacher, model)]
            return float(logit_kl(*pair))

    return kl


@pytest.fixture
def go(judge: Any, tmp_path: Path) -> Callable[..., Any]:
    """Run a distiller in a folder."""

    def run(distiller: Distiller, folder: str = "state", identity: str = "a", **changed: Any) -> Any:
        watch = changed.get("watch", lambda step, note: None)
        return distiller.run(changed.get("judge", judge), tmp_path / folder, identity, watch)

    return run
