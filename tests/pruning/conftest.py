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
from autoprune.pruning.build import ladder_folder
from autoprune.pruning.ladders import StoredLadders
from autoprune.pruning.recipe import LadderRecipe
from tests import tiny

Windows = NDArray[np.int32]
OPTIONS = {"kv_groups": tuple(range(tiny.GROUPS + 1)), "width": (0, 8, 16, 24, tiny.FFN)}


@pytest.fixture(scope="session")
def windows() -> Windows:
    """Forty-eight windows of 16 tokens."""
    return tiny.token_ids((48, 16)).numpy().astype(np.int32)


@pytest.fixture
def ladders_of(tmp_path: Path) -> Callable[..., StoredLadders]:
    """Ladders of a model on windows."""

    def build(model: Any, windows: Windows, sequences: int = 4, **settings: Any) -> StoredLadders:
        adapter = LlamaAdapter(model)
        recipe = LadderRecipe(windows, sequences, options=OPTIONS, **{"ladder": "nested", **settings})
        return StoredLadders(adapter, ladder_folder(adapter, "digest", recipe, Cache(tmp_path / "cache")))

    return build
