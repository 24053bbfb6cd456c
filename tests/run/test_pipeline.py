"""A busy machine must not cost a run its front, nor put unmeasured times in its report."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from autoprune.errors import MeasurementError
from autoprune.ledger import Ledger
from autoprune.run import outputs, pipeline


class _Say:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


class _Parts:
    def __init__(self, **settings: object) -> None:
        self.cfg = OmegaConf.create({"objectives": ["kl", "params"], "constraints": {}, **settings})


def _serial() -> Any:
    target = {"_target_": "autoprune.executors.serial.Serial"}
    return OmegaConf.create({"executor": target, "threads": 1, "latency": {"mode": "off"}})


def _busy(*_: object) -> None:
    raise MeasurementError("measurement refused: the machine is busy")


def test_a_busy_machine_means_no_predictions(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pipeline, "latency_table", _busy)
    said = _Say()
    assert pipeline._table(_Parts(), tmp_path, said) is None  # type: ignore[arg-type]
    assert "busy" in said.lines[0]


@pytest.mark.parametrize("settings", [{"constraints": {"decode": "0.6x"}}, {"objectives": ["kl", "prefill"]}])
def test_a_run_that_needs_latencies_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: dict[str, object]
) -> None:
    monkeypatch.setattr(pipeline, "latency_table", _busy)
    with pytest.raises(MeasurementError):
        pipeline._table(_Parts(**settings), tmp_path, _Say())  # type: ignore[arg-type]


def test_a_run_that_began_without_a_table_stays_without(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "ledger.sqlite").touch()
    monkeypatch.setattr(pipeline, "latency_table", lambda *_: pytest.fail("measured in the middle of a run"))
    assert pipeline._table(_Parts(), tmp_path, _Say()) is None  # type: ignore[arg-type]


def test_notes_reach_the_report(tmp_path: Path) -> None:
    ledger = Ledger.create(tmp_path / "ledger.sqlite", {})
    ledger.event("note", text="The front was not timed.")
    assert outputs._notes(ledger, 3) == ("The front was not timed.",)
    assert outputs._notes(ledger, 0) == (outputs.NOTHING, "The front was not timed.")


def test_a_fork_that_was_killed_still_adopts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "new").mkdir()
    Ledger.create(tmp_path / "old" / "ledger.sqlite", {})
    Ledger.create(tmp_path / "new" / "ledger.sqlite", {pipeline.ADOPTS: str(tmp_path / "old")})
    opened = SimpleNamespace(parts=SimpleNamespace(device=torch.device("cpu")))
    monkeypatch.setattr(pipeline, "_open", lambda *_: opened)
    monkeypatch.setattr(pipeline, "_check_identity", lambda *_: None)
    monkeypatch.setattr(pipeline, "_adopted", lambda source, run: source)
    monkeypatch.setattr(pipeline, "_finish", lambda run, ledger, executor, adopted: adopted)
    assert pipeline.resume(tmp_path / "new", _serial(), _Say()) == tmp_path / "old"  # type: ignore[arg-type]
    monkeypatch.setattr(pipeline, "holds_run", lambda path: False)  # the source is gone: evaluate again
    assert pipeline.resume(tmp_path / "new", _serial(), _Say()) is None  # type: ignore[arg-type]
