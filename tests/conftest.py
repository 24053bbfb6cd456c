"""What all tests share: one thread, no network, no display; markers that skip what cannot run here."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

for _name, _value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(_name, _value)
if not Path("/dev/nvidia0").exists():  # before anything imports triton
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(config, {mark.name for mark in item.iter_markers()})
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not(config: pytest.Config, marks: set[str]) -> str:
    if "real" in marks and not _real_data().is_dir():
        return "no real data: name their folder in AUTOPRUNE_REAL_DATA"
    if "slow" in marks and not config.getoption("--slow"):
        return "slow; run with --slow"
    if "ray" in marks and find_spec("ray") is None:
        return "Ray is not installed"
    if "gpu" in marks and not _has_gpu():
        return "there is no CUDA device"
    return ""


def _real_data() -> Path:
    """Trained models and corpora, beside the checkout unless the environment says where."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    return Path(os.environ.get("AUTOPRUNE_REAL_DATA") or beside)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of trained models and corpora; for tests marked `real`."""
    return _real_data()


@pytest.fixture(scope="session", autouse=True)
def artifact_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An artifact cache of the tests' own, for child processes too."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("AUTOPRUNE_CACHE", str(folder))
        yield folder
