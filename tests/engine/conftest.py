"""Supernets over the dense weights of tiny models, and small corpora of random tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from autoprune.cache import Cache
from autoprune.data import Corpus
from autoprune.evaluation import Context
from autoprune.models.llama import LlamaAdapter
from autoprune.objective import Split
from autoprune.run.stream import dense_logits
from autoprune.space import Plan
from autoprune.supernet import Supernet
from tests import tiny
from tests.prefixes import Prefixes


def supernet(model: Any, memory_bytes: int = 512 << 20) -> Supernet:
    """A supernet whose ladders are prefixes of the dense weights."""
    adapter = LlamaAdapter(model)
    return Supernet(adapter, Prefixes(adapter), memory_bytes)


def random_plans(count: int, blocks: int, seed: int = 0) -> list[Plan]:
    """Plans that share prefixes: each differs from an earlier one in one to three sites."""
    rng = np.random.default_rng(seed)
    found = [Plan.of([(tiny.GROUPS, tiny.FFN)] * blocks)]
    while len(found) < count:
        pairs = found[int(rng.integers(len(found)))].widths()
        for _ in range(int(rng.integers(1, 4))):
            block = int(rng.integers(blocks))
            groups, width = pairs[block]
            if rng.random() < 0.4:
                pairs[block] = (int(rng.integers(tiny.GROUPS + 1)), width)
            else:
                pairs[block] = (groups, int(rng.integers(0, 7)) * 8)
        found.append(Plan.of(pairs))
    return found


def logits(net: Supernet, plans: list[Plan], ids: Tensor) -> list[Tensor]:
    """Logits of each plan, in the plans' order."""
    found: dict[int, Tensor] = {}

    def visit(index: int, out: Tensor) -> None:
        assert index not in found, "a plan was visited twice"
        found[index] = out.clone()

    net.run(plans, ids, visit)
    return [found[i] for i in range(len(plans))]


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The helpers of this file; tests cannot import a conftest."""
    return SimpleNamespace(supernet=supernet, plans=random_plans, logits=logits)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """Eleven windows of 12 tokens in every split but train."""
    for at, split in enumerate((Split.CALIBRATION, Split.FITNESS, Split.SELECTION, Split.TEST)):
        rows = tiny.token_ids((11, 12), seed=at).numpy().astype(np.int32)
        np.save(tmp_path / f"{split.value}.npy", rows)
    return Corpus(tmp_path, "corpus")


@pytest.fixture
def context(tmp_path: Path) -> Callable[[Supernet], Context]:
    """What evaluators prepare themselves with."""
    return lambda net: Context(dense_logits(net.adapter), Cache(tmp_path / "cache"), "digest")
