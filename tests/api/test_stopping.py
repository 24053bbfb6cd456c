"""Runs that are killed, interrupted, resumed and forked end up where an undisturbed one does."""

from __future__ import annotations

import random
import shutil
import signal
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from autoprune import api
from autoprune.cli import main
from autoprune.errors import LedgerError
from autoprune.front import Front
from autoprune.ledger import Ledger

pytestmark = pytest.mark.alone

SCORES = ["key", "kl_fitness", "kl_selection", "kl_test", "perplexity_test"]
ORIGIN = 11  # of the ordered columns


def test_killed_twice_and_interrupted_it_ends_like_an_undisturbed_run(
    given: Any, front: Front, tmp_path: Path, runs: SimpleNamespace, no_export: None
) -> None:
    total, seed = runs.progress(front.folder), random.SystemRandom().randrange(10_000)
    draw = random.Random(seed)
    out, log = tmp_path / "run", tmp_path / "log"
    moments = [draw.randint(1, total // 3), draw.randint(total // 3, 2 * total // 3)]
    told = f"seed {seed}, killed after {moments} of {total} records"
    pid = runs.start(given.line(out, f"latency.file={front.folder / 'latency.json'}"), log)
    assert runs.signal_at(pid, out, moments[0], signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    pid = runs.fork(["resume", str(out)], log)
    assert runs.signal_at(pid, out, moments[1], signal.SIGKILL) == -signal.SIGKILL, log.read_text()
    pid = runs.fork(["resume", str(out)], log)
    at = draw.randint(runs.progress(out) + 1, total - 12)
    assert runs.signal_at(pid, out, at, signal.SIGINT) == 3, f"{told}: {log.read_text()}"
    assert log.read_text().splitlines() == [f"autoprune: stopped; continue with: autoprune resume {out}"]
    resumed = api.resume(out)
    assert runs.ordered(out) == runs.ordered(front.folder), told
    assert resumed.frame()[SCORES].equals(front.frame()[SCORES]), told
    with closing(Ledger.open(out / "ledger.sqlite")) as ledger:
        assert ledger.events("resumed") and ledger.events("interrupted") and ledger.events("finished")


def test_a_fork_adopts_every_finished_evaluation(
    given: Any,
    front: Front,
    tmp_path: Path,
    runs: SimpleNamespace,
    no_export: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from autoprune.executors.serial import Serial

    def nothing(self: Serial, batch: list[Any]) -> None:
        assert not batch, "an evaluation was made again"

    monkeypatch.setattr(Serial, "submit", nothing)
    before = runs.ordered(front.folder)
    assert main(["resume", str(front.folder), "--fork", str(tmp_path / "fork")]) == 0
    forked, kept = runs.ordered(tmp_path / "fork"), runs.ordered(front.folder)
    assert kept == before
    assert {row[ORIGIN] for row in forked} == {"adopted", "memory"} & {row[ORIGIN] for row in forked}
    assert "adopted" in {row[ORIGIN] for row in forked}
    without = [[row[:ORIGIN] + row[ORIGIN + 1 :] for row in rows] for rows in (forked, before)]
    assert without[0] == without[1]


def test_a_fork_from_another_model_is_refused(given: Any, front: Front, tmp_path: Path) -> None:
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run import pipeline
    from tests import tiny

    other = tiny.save(tiny.llama(seed=5), tmp_path / "other")
    line = [w for w in given.line(tmp_path / "run", "latency.mode=off") if not w.startswith("model=")]
    cfg = compose([f"model={other}", *line])
    with pytest.raises(LedgerError, match="its model is .* nothing fits"), Progress(quiet=True) as progress:
        pipeline.start(cfg, "", progress, adopt=front.folder)


def test_a_run_whose_text_has_changed_is_not_resumed(
    given: Any, front: Front, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, text = tmp_path / "run", tmp_path / "text.txt"
    shutil.copytree(front.folder, run)
    text.write_text(given.text.read_text()[::-1])
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace(str(given.text), str(text)))
    with closing(Ledger.open(run / "ledger.sqlite")) as ledger, ledger._transaction() as db:
        db.execute("DELETE FROM events WHERE kind = 'finished'")
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert "the ledger's corpus is" in said and "autoprune resume --fork NEW" in said


def test_interrupted_before_it_began_there_is_nothing_to_resume(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("autoprune.run.pipeline.open_parts", interrupt)
    assert main(given.line(tmp_path / "run", "latency.mode=off")) == 3
    assert "stopped before the run had begun; start it again" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
