"""A tiny model and text for benchmarks to compare methods on."""

from __future__ import annotations

import pytest

from autoprune.bench import small
from autoprune.bench.search.runs import Setting

SETTINGS = (
    *("window=32", "calibration.tokens=512", "selection_windows=6", "test_windows=8", "sequences=4"),
    *("finalists=40", "front_points=4"),
)


@pytest.fixture(scope="session")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    """What all runs share."""
    folder = tmp_path_factory.mktemp("given")
    small.make(folder)
    return Setting(
        str(folder / "model"), str(folder / "text.txt"), "structured", SETTINGS, str(folder / "work")
    )
