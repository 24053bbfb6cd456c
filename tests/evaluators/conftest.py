"""Teachers over made-up logits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from autoprune.cache import Cache
from autoprune.evaluation import Batch, Context
from autoprune.objective import Split

VOCABULARY = 97


def random_logits(seed: int, scale: float = 2.0, shape: tuple[int, ...] = (3, 11)) -> Tensor:
    """Logits [B, T, V]."""
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(*shape, VOCABULARY, generator=generator)


@pytest.fixture
def make_logits() -> Callable[..., Tensor]:
    return random_logits


@pytest.fixture
def batch() -> Batch:
    """Three sequences of eleven tokens."""
    ids = torch.randint(VOCABULARY, (3, 11), generator=torch.Generator().manual_seed(0))
    return Batch(Split.FITNESS, (0, 3), ids)


@pytest.fixture
def context(tmp_path: Path) -> Callable[[Tensor], Context]:
    """A context whose dense model gives these logits."""
    return lambda dense: Context(lambda ids: dense, Cache(tmp_path / "cache"), "digest")
