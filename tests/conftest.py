"""What all tests share: one thread, no network, no display; markers that skip what cannot run here."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

for _name, _value in {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"}.items():
    os.environ.setdefault(_name, _value)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the slow tests too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        reason = _why_not(config, {mark.name for mark in item.iter_markers()})
        if reason:
            item.add_marker(pytest.mark.skip(reason=reason))


def _why_not(config: pytest.Config, marks: set[str]) -> str:
    if "slow" in marks and not config.getoption("--slow"):
        return "slow; run with --slow"
    if "ray" in marks and find_spec("ray") is None:
        return "Ray is not installed"
    if "gpu" in marks and not _has_gpu():
        return "there is no CUDA device"
    return ""


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parent.parent
