"""A run on a made-up GPU, from its first plan to its report; what it remembers of it, and where it may go on."""

from __future__ import annotations

import json
import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from autoprune.config import compose
from autoprune.ledger import Ledger
from autoprune.progress import Progress
from autoprune.run import parts, pipeline
from autoprune.run.folder import load_settings
from tests.made_up_gpu import GPU, made_up_gpu

WORDS = ("latency.mode=off", "tokens=4000", "evaluator=[divergence,perplexity,needle]", "uniform=[0.5]")
NEEDLE = ("evaluator.needle.lengths=[16]", "evaluator.needle.items=2", "evaluator.needle.depths=[0.5]")


def notes(run: Path) -> list[str]:
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger:
        return [str(e["text"]) for e in ledger.events("note")]


@pytest.mark.usefixtures("no_export")
def test_a_run_on_a_gpu_goes_on_there_or_elsewhere(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    cfg = compose(given.line(run, *WORDS, *NEEDLE))
    monkeypatch.setattr("autoprune.models.linear._ONEDNN", False)
    with monkeypatch.context() as patch, made_up_gpu(), Progress(quiet=True) as progress:
        patch.setattr(parts, "device_of", lambda cfg: GPU)
        pipeline.search_only(cfg, "", progress)
        shutil.copytree(run, copy)
        pipeline.resume(run, load_settings(run, False), progress)
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger:
        assert ledger.meta()["device"] == GPU.type and ledger.events("finished")
    assert json.loads((run / "environment.json").read_text())["device"] == str(GPU)
    assert not any("gone on with" in note for note in notes(run))
    with Progress(quiet=True) as progress:
        pipeline.resume(copy, load_settings(copy, False), progress)
    assert "Begun on madeup, gone on with on cpu: scores may differ in their last bits." in notes(copy)
    boards = [(at / "leaderboard.csv").read_text().splitlines() for at in (run, copy)]
    assert len(boards[0]) == len(boards[1]) > 3
