"""A user's mistake: one line on stderr, exit code 2, no traceback, and nothing left behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

MISTAKES = [
    ("serach=nsga2", "unknown setting 'serach'; did you mean 'search'?"),
    ("model=x latency.roundz=3", "unknown setting 'latency.roundz'; did you mean 'rounds'?"),
    (
        "model=x search=nsga2 search.popultion=3",
        "unknown setting 'search.popultion'; did you mean 'population'?",
    ),
    (
        "model=x space.structred.ffn_options=3",
        "unknown setting 'space.structred'; did you mean 'structured'?",
    ),
    ("model=x +quite=true", "unknown setting 'quite'; did you mean 'quiet'?"),
    ("model=x search=nsga4", "search=nsga4 is unknown; did you mean 'nsga3'?"),
    ("model=x space=[structured,strctured]", "space=strctured is unknown; did you mean 'structured'?"),
    ("model=x +experiment=dmo", "experiment=dmo is unknown; did you mean 'demo'?"),
    ("search=random", "model=… is required"),
    ("model= out=x", "'model=': the value of model is empty"),
    ("model=x objectives=[kl", "cannot read 'objectives=[kl'"),
    ("model=x seed=abc", "seed: Value 'abc'"),
    ("model=x window=1", "window=1 is out of range"),
    ("model=x out=${nowhere}", "Interpolation key 'nowhere' not found"),
    ("model=x stray", "cannot read 'stray'; settings are written key=value"),
    ("model=x --seed 3", "unknown option '--seed'; settings are written key=value; did you mean 'seed'?"),
    ("--cfg jb", "--cfg jb is unknown; allowed: --cfg job"),
    ("-m --cfg job", "does not go with -m"),
    ("--resolve model=x", "--resolve goes with --cfg job"),
    ("model=x --config-dir nowhere", "--config-dir nowhere is not a folder"),
    ("-m model=x search=nsga2,nsga4", "search=nsga4 is unknown; did you mean 'nsga3'?"),
    ("exprot run", "unknown command 'exprot'; did you mean 'export'?"),
    ("export run --tp out", "export: unknown option '--tp'; did you mean '--to'?"),
    ("export run --to out", "one of the arguments --key --params --prefill --decode is required"),
    ("export run --key a --params 0.6x --to out", "not allowed with"),
    ("export run --key a --to out", "run is not a run folder: it holds no config.yaml"),
    ("resume", "resume: the following arguments are required: DIR; see autoprune resume --help"),
    ("resume run", "run is not a run folder"),
    ("report run", "run is not a run folder"),
    ("leaderboard run", "run does not exist or is no folder; name a run folder or a folder of runs"),
    ("leaderboard .", ". holds no run: no ledger.sqlite in it or below it"),
    ("zoo trian x", "invalid choice: 'trian'"),
    ("list serach", "list: unknown group 'serach'; did you mean 'search'?"),
    ("list search here", "list: a folder goes with runs: autoprune list runs here"),
    ("list runs nowhere", "nowhere does not exist or is no folder"),
    ("list runs .", ". holds no run: no ledger.sqlite in it or below it"),
    ("cache prnue", "cache: unknown action 'prnue'; did you mean 'prune'?"),
]


@pytest.mark.parametrize(("line", "message"), MISTAKES)
def test_mistake(run: Callable[..., Any], calls: Any, tmp_path: Path, line: str, message: str) -> None:
    done = run(*line.split(" "))
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("autoprune: ") and message in done.err and done.err.count("\n") == 1
    assert not calls.made
    left = {p.name for p in tmp_path.rglob("*")} - {"results", "multirun.yaml"}
    assert not {name for name in left if not name.startswith("20")}


def test_a_run_that_never_began_leaves_no_folder(run: Callable[..., Any], tmp_path: Path) -> None:
    assert run("model=x", "window=1", "out=new").code == 2
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written(run: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run("model=x", "out=file/run")
    assert done.code == 2 and done.err.count("\n") == 1
    assert done.err.startswith("autoprune: out: ") and "file" in done.err and "Not a directory" in done.err
