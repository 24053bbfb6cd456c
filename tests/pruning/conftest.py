"""A tiny model, calibration windows and ladders over them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from autoprune.cache import Cache
from autoprune.models.llama import LlamaAdapter
from autoprune.pruning.nested import NestedLadders, build_nested
from tests import tiny

Windows = NDArray[np.int32]


@pytest.fixture(scope="session")
def windows() -> Windows:
    """Six windows of 16 tokens."""
    return tiny.token_ids((6, 16)).numpy().astype(np.int32)


@pytest.fixture
def ladders_of(tmp_path: Path) -> Callable[..., NestedLadders]:
    """Ladders of a model on windows."""

    def build(model: Any, windows: Windows, sequences: int = 4) -> NestedLadders:
        adapter = LlamaAdapter(model)
        return NestedLadders(
            adapter, build_nested(adapter, "digest", windows, sequences, Cache(tmp_path / "cache"))
        )

    return build
