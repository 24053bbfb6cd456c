"""The quickstart of README.md does what it says."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

import autoprune
from autoprune.run import outputs
from tests.docs.blocks import ROOT, blocks, commands, run_shell, small_python

SECTION = "## Your model"


def shell() -> list[list[str]]:
    return [words for b in blocks("README.md", SECTION) if b.language == "sh" for words in commands(b)]


def refused_as_too_noisy(capsys: pytest.CaptureFixture[str]) -> None:
    """Models as tiny as these can only be timed on a quiet machine."""
    said = capsys.readouterr().err
    assert "refused" in said and said.count("\n") == 1
    pytest.skip(said)


def python() -> str:
    (block,) = (b for b in blocks("README.md", SECTION) if b.language == "python")
    return block.text


@pytest.fixture
def no_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out best/, which every run would prove in a fresh process; the exports on the page are proven."""
    monkeypatch.setattr(outputs, "_export_best", lambda run, frame: None)


def test_the_page_has_what_is_run_here() -> None:
    starts = [words[1].partition("=")[0] for words in shell()]
    assert starts == ["model", "export", "model", "export", "-m", "leaderboard"]
    assert "autoprune.search(" in python() and "autoprune.load(" in python()


def test_a_model_and_a_text(desk: Path, no_best: None, monkeypatch: pytest.MonkeyPatch) -> None:
    search, export = shell()[:2]
    assert run_shell(search, monkeypatch) == 0
    assert run_shell(export, monkeypatch) == 0
    dense, smaller = (autoprune.load(desk / name) for name in ("my-model", "smaller"))
    assert sum(p.numel() for p in smaller.parameters()) < sum(p.numel() for p in dense.parameters())
    assert list((desk / "results" / "mine" / "pictures").glob("*.png"))


def test_a_latency_target(
    desk: Path, no_best: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The models are too small to tell which is faster: the export may find none that is measured within the bound."""
    search, export = shell()[2:4]
    if run_shell(search, monkeypatch) == 3:
        refused_as_too_noisy(capsys)
    code, said = run_shell(export, monkeypatch), capsys.readouterr().err
    if "this run has no measured decode_ratio" in said:
        pytest.skip("the front could not be timed: the machine is busy")
    assert code == 0 or (code == 2 and "the smallest on the front is" in said), said


def test_a_sweep_and_its_leaderboard(desk: Path, no_best: None, monkeypatch: pytest.MonkeyPatch) -> None:
    search, board = shell()[4:]
    words = [
        w.replace("seed=0,1,2", "seed=0,1").replace("search=nsga2,random", "search=random") for w in search
    ]
    assert words != search
    assert run_shell([*words, "search.windows=4", "search.batch=16"], monkeypatch) == 0
    assert run_shell(board, monkeypatch) == 0
    assert "random" in (desk / "all.csv").read_text() and "<svg" in (desk / "all.html").read_text()


def test_the_python_block(desk: Path, no_best: None, capsys: pytest.CaptureFixture[str]) -> None:
    text = small_python(python())
    assert text != python()
    exec(compile(text, "README.md", "exec"), {})
    assert "params_ratio" in capsys.readouterr().out and (desk / "smaller" / "config.json").is_file()


def test_the_picture_is_as_pictures_are_made_now() -> None:
    """A picture that stands alone has its title above the axes: its size is not that of the bare figure."""
    from autoprune.report.canvas import PNG_DPI

    page = (ROOT / "README.md").read_text()
    assert "(docs/front.png)" in page and "autoprune report results/demo" in page
    width, height = struct.unpack(">II", (ROOT / "docs" / "front.png").read_bytes()[16:24])
    assert width > 7 * PNG_DPI and height > 5 * PNG_DPI
