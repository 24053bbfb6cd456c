"""A stage in one batch against the masked stock model: the same figures, or no table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from autoprune.bench import stage
from autoprune.bench.search.runs import Setting
from autoprune.errors import MeasurementError


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    """Small windows and few plans."""
    original = stage.compose
    monkeypatch.setattr(stage, "compose", lambda words: original([*words, *setting.settings]))
    monkeypatch.setattr(stage, "PLANS", 6)


def run(setting: Setting, to: Path) -> str:
    """The table."""
    words = [
        "--model",
        setting.model,
        "--data",
        setting.data,
        "--to",
        str(to),
        "--rounds",
        "1",
        "--windows",
        "2",
    ]
    stage.main(words)
    return to.read_text()


def test_the_masked_stock_model_finds_the_same(setting: Setting, tmp_path: Path) -> None:
    text = run(setting, tmp_path / "x.md")
    assert "6 plans on 2 windows of 32 tokens" in text and "| wall |" in text
    lines = text.partition("| part of the batch")[2].splitlines()[2:]
    shares = [float(line.split("|")[2].strip(" %")) for line in lines if line.startswith("|")]
    assert len(shares) == 6 and sum(shares) == pytest.approx(100, abs=0.5) and min(shares[1:5]) > 0


def test_another_model_gives_no_table(
    setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: stage.Stock, depth: int, module: Any, given: Any) -> Any:
        return given  # nothing is masked

    monkeypatch.setattr(stage.Stock, "_hook", other)
    with pytest.raises(MeasurementError, match="other KLs"):
        run(setting, tmp_path / "x.md")
    assert not (tmp_path / "x.md").exists()


def test_disagreement_is_relative() -> None:
    assert stage.disagreement(np.array([2.0, 1.0]), np.array([2.0001, 1.0])) == pytest.approx(5e-5)
