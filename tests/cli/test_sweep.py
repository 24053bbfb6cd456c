"""One run and sweeps: what reaches the API, in which folder, and which command remakes it."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from autoprune.cli import main
from autoprune.errors import InfeasibleError, StoppedError


def test_one_run(run: Callable[..., Any], calls: Any, tmp_path: Path) -> None:
    words = ["model=/a b/c=d,e(1)", "constraints={decode: 0.6x}", "out=here"]
    assert run(*words).code == 0
    [(name, (cfg, command), _)] = calls.made
    assert (name, shlex.split(command)) == ("run_config", ["autoprune", *words])
    assert cfg.model == "/a b/c=d,e(1)" and cfg.out == str(tmp_path / "here")
    assert cfg.constraints == {"decode": "0.6x"} and "hydra" not in cfg


def test_printing_the_configuration_runs_nothing(run: Callable[..., Any], calls: Any) -> None:
    done = run("--cfg", "job", "model=x", "seed=4")
    assert done.code == 0 and "model: x" in done.out and "seed: 4" in done.out and not calls.made


def test_a_sweep_runs_every_combination_in_its_own_folder(
    run: Callable[..., Any], calls: Any, tmp_path: Path
) -> None:
    assert run("-m", "model=/m/x,/m/y", "search=nsga2,random", "seed=0,1", "out=sw").code == 0
    runs = [args for _, args, _ in calls.made]
    assert len({cfg.out for cfg, _ in runs}) == len(runs) == 8
    assert all(Path(cfg.out).parent == tmp_path / "sw" for cfg, _ in runs)
    assert {(cfg.model, cfg.search._target_.split(".")[-1], cfg.seed) for cfg, _ in runs} == {
        (m, s, i) for m in ("/m/x", "/m/y") for s in ("NSGA2", "Random") for i in (0, 1)
    }


def test_the_command_of_a_sweeps_run_remakes_that_run(run: Callable[..., Any], calls: Any) -> None:
    run("-m", "model=/a b,y", "seed=0,1", "constraints={params: 0.6x}", "out=sw")
    swept = [args for _, args, _ in calls.made]
    assert shlex.split(swept[-1][1])[:2] == ["autoprune", "model=y"]
    for cfg, command in swept:
        assert main(shlex.split(command)[1:]) == 0
        assert calls.made[-1][1][0] == cfg


def test_a_failure_ends_its_own_run_only(run: Callable[..., Any], calls: Any) -> None:
    def answer(cfg: Any, command: str) -> None:
        if cfg.seed == 1:
            raise InfeasibleError("cannot be met")

    calls.answer = answer
    done = run("-m", "model=x", "seed=0,1,2", "out=sw")
    assert (done.code, done.err) == (2, "autoprune: 1_seed=1: cannot be met\n") and len(calls.made) == 3


def test_a_stop_ends_the_sweep(run: Callable[..., Any], calls: Any) -> None:
    def answer(cfg: Any, command: str) -> None:
        raise InfeasibleError("no") if cfg.seed == 0 else StoppedError("stopped")

    calls.answer = answer
    assert run("-m", "model=x", "seed=0,1,2", "out=sw").code == 3
    assert len(calls.made) == 2
