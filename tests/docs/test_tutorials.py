"""The tutorials, block by block."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from autoprune.cli import main
from autoprune.run import outputs, pipeline
from tests.docs.blocks import ROOT, blocks, commands, run_shell, small

YOURS, SEARCHER = "docs/tutorials/your-model.md", "docs/tutorials/your-own-searcher.md"


@pytest.fixture(autouse=True)
def no_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out best/, which every run would prove in a fresh process; the exports on the pages are proven."""
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)


def test_your_model(desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    search, look, export, timing, target = blocks(YOURS)
    for words in (*commands(search), *commands(look), *commands(export)):
        assert run_shell(words, monkeypatch) == 0
    said = capsys.readouterr().out
    assert "mine  finished  my-model  auto" in said and "# Leaderboard" in said
    exec(compile(timing.text, YOURS, "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["dense", "smaller"] and lines[0] != lines[1]
    (words,) = commands(target)
    code, said = run_shell(words, monkeypatch), capsys.readouterr().err
    assert code == 0 or (code == 3 and "refused" in said), (
        "models as tiny as these need a quiet machine to be timed"
    )


@pytest.fixture
def mine(desk: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The three files of the searcher's tutorial."""
    code, settings, contract = [b.text for b in blocks(SEARCHER) if b.language in ("python", "yaml")]
    (desk / "mine" / "conf" / "search").mkdir(parents=True)
    (desk / "mine" / "hill.py").write_text(code)
    (desk / "mine" / "conf" / "search" / "hill.yaml").write_text(settings)
    (desk / "mine" / "test_hill.py").write_text(contract)
    monkeypatch.delitem(sys.modules, "hill", raising=False)
    return desk / "mine"


def shell() -> list[list[str]]:
    return [words for b in blocks(SEARCHER) if b.language == "sh" for words in commands(b)]


def test_your_own_searcher_passes_the_contract(mine: Path) -> None:
    prefix, python, *words = shell()[0]
    assert (prefix, python, words) == ("PYTHONPATH=mine", "python", ["-m", "pytest", "mine/test_hill.py"])
    options = ["-q", "-p", "no:cacheprovider", "-c", str(ROOT / "pyproject.toml"), "--rootdir", str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(mine), str(ROOT)])}
    command = [sys.executable, *words, *options]
    done = subprocess.run(command, cwd=mine.parent, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_your_own_searcher_runs_and_needs_trust(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    search, report, export = shell()[1:]
    assert run_shell(search, monkeypatch) == 0
    assert "hill" in (mine.parent / "results" / "hill" / "leaderboard.csv").read_text()
    assert run_shell(report, monkeypatch) == 0 and main(["leaderboard", "results/hill"]) == 0
    capsys.readouterr()
    assert run_shell([w for w in export if w != "--trust"], monkeypatch) == 2
    said = next(b.text for b in blocks(SEARCHER) if b.language == "")
    assert capsys.readouterr().err == said
    assert run_shell(export, monkeypatch) == 0 and (mine.parent / "smaller" / "config.json").is_file()


def test_resuming_your_own_searcher_needs_trust(
    mine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "ranked", stop)
        assert run_shell(shell()[1], monkeypatch) == 3
    assert main(["resume", "results/hill"]) == 2 and "pass --trust to run it" in capsys.readouterr().err
    assert main(["resume", "results/hill", "--trust"]) == 0
    assert (mine.parent / "results" / "hill" / "report.html").is_file()


def test_a_searcher_that_python_does_not_find_is_named(
    mine: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mine / "hill.py").unlink()
    words = small(shell()[1][2:])
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "hill.HillClimb" in said and said.count("\n") == 1
