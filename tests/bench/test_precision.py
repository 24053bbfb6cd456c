"""Searching in bf16 against fp32: what bf16 rounds shows, and so does whether it ranks plans alike."""

from __future__ import annotations

from pathlib import Path

import pytest

from autoprune.bench import precision, stage
from autoprune.bench.search.runs import Setting


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    """Small windows and few plans."""
    original = precision.compose
    monkeypatch.setattr(precision, "compose", lambda words: original([*words, *setting.settings]))
    monkeypatch.setattr(stage, "PLANS", 6)


def cells(setting: Setting, to: Path) -> list[str]:
    """Those of the one model's row."""
    words = ["--models", setting.model, "--data", setting.data, "--to", str(to), "--rounds", "1"]
    precision.main([*words, "--windows", "2", "--wide", "0"])
    _, _, row = (line for line in to.read_text().splitlines() if line.startswith("|"))
    return [cell.strip() for cell in row.strip("|").split("|")]


def test_both_precisions_are_measured(setting: Setting, tmp_path: Path) -> None:
    name, _, exact, rounded, ratio, _, rounding, tau = cells(setting, tmp_path / "x.md")
    assert name == "model"
    assert min(map(float, (exact, rounded))) >= 0 and float(ratio) > 0
    assert 0 < float(rounding) < 5e-3, "bf16 rounds, and not more than a search bears"
    assert 0.5 < float(tau) <= 1


def test_fp32_twice_rounds_nothing(setting: Setting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "WORDS", ("fp32", "fp32"))
    *_, rounding, tau = cells(setting, tmp_path / "x.md")
    assert float(rounding) < 1e-6 and float(tau) == 1
