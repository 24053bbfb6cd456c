"""Exit codes: what ends a command decides what is said and returned."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import ExportError, InfeasibleError, MeasurementError, StoppedError


def raising(error: BaseException) -> Callable[..., Any]:
    def answer(*args: Any, **kwargs: Any) -> None:
        raise error

    return answer


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (InfeasibleError("params=0.01x cannot be met"), 2, "params=0.01x cannot be met"),
        (
            StoppedError("stopped; continue with: autoprune resume r"),
            3,
            "stopped; continue with: autoprune resume r",
        ),
        (MeasurementError("the machine is busy"), 3, "the machine is busy"),
        (ExportError("logits differ"), 1, "logits differ"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "r/x"), 2, "r/x: No space left on device"),
        (OSError("no such model on the hub\ntry another"), 2, "no such model on the hub try another"),
        (PermissionError(errno.EACCES, "Permission denied", "r"), 2, "r: Permission denied"),
        (KeyboardInterrupt(), 3, "stopped"),
    ],
)
@pytest.mark.parametrize("words", [["profile", "m"], ["model=x", "out=r"]])
def test_one_line(
    run: Callable[..., Any], calls: Any, words: list[str], error: Any, code: int, line: str
) -> None:
    calls.answer = raising(error)
    done = run(*words)
    assert done.code == code
    assert done.err.startswith(f"autoprune: {line}") and done.err.count("\n") == 1


@pytest.mark.parametrize("words", [["profile", "m"], ["model=x", "out=r"]])
def test_a_fault_of_ours_shows_its_traceback(run: Callable[..., Any], calls: Any, words: list[str]) -> None:
    calls.answer = raising(ZeroDivisionError("of ours"))
    done = run(*words)
    assert done.code == 1 and "Traceback" in done.err and "ZeroDivisionError: of ours" in done.err


@pytest.mark.parametrize("words", [["model=x", "out=r"], ["resume", "r"], ["demo", "--out", "r"]])
def test_ctrl_c_says_how_to_go_on(
    run: Callable[..., Any], calls: Any, tmp_path: Path, words: list[str]
) -> None:
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "config.yaml").touch()
    calls.answer = raising(KeyboardInterrupt())
    done = run(*words)
    assert done.code == 3 and "before the run had begun" in done.err
    (tmp_path / "r" / "ledger.sqlite").touch()
    done = run(*words)
    folder = str(tmp_path / "r") if words[0] == "model=x" else "r"
    assert (done.code, done.err) == (3, f"autoprune: stopped; continue with: autoprune resume {folder}\n")


def build(cfg: Any, command: str) -> None:
    import hydra

    hydra.utils.instantiate(cfg.search)


@pytest.mark.parametrize(
    ("target", "code", "words"),
    [
        ("autoprune.space.CostTable", 2, "unexpected keyword argument"),
        ("autoprune.nowhere.Thing", 2, "autoprune.nowhere.Thing"),
        ("search_spaces.structured.Structured", 2, "space.structured.ffn_options=1 is too small"),
        ("fractions.Fraction", 1, "ZeroDivisionError"),
    ],
)
def test_what_a_plugged_in_class_raises(
    run: Callable[..., Any], calls: Any, tmp_path: Path, target: str, code: int, words: str
) -> None:
    settings = {
        "search_spaces.structured.Structured": "ffn_options: 1",
        "fractions.Fraction": "denominator: 0\nnumerator: 1",
    }
    (tmp_path / "mine" / "search").mkdir(parents=True)
    text = f"_target_: {target}\n{settings.get(target, 'wrong: 1')}\n"
    (tmp_path / "mine" / "search" / "mine.yaml").write_text(text)
    calls.answer = build
    done = run("model=x", "out=r", "--config-dir", "mine", "search=mine")
    assert done.code == code and words in done.err
    assert (done.err.count("\n") == 1) == (code == 2)


def test_output_that_nobody_reads_on_ends_quietly() -> None:
    """`autoprune list | head -1`: no traceback, no line, the exit code of SIGPIPE."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-m", "autoprune", "list", "bench"], stdout=writing, stderr=-1)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


def test_a_pipe_of_our_own_that_breaks_is_no_silence(run: Callable[..., Any], calls: Any) -> None:
    calls.answer = raising(BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)))
    done = run("profile", "m")
    assert (done.code, done.err) == (2, "autoprune: Broken pipe\n")
