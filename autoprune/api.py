"""The Python API; the command line is one of its callers."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.errors import LedgerError, SettingError, nearest
from autoprune.front import Front, Point

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    from autoprune.export.roundtrip import RoundTrip
    from autoprune.ledger import Ledger
    from autoprune.report.correlation import Tau

__all__ = ["Front", "Point", "export", "load", "recover", "report", "resume", "search"]

DEMO = ("+experiment=demo",)


def search(
    model: str | Path,
    *,
    data: str | Path = "auto",
    space: str | Sequence[str] = "structured",
    search: str = "auto",
    objectives: Sequence[str] = ("kl", "params"),
    constraints: Mapping[str, str | float | Sequence[str | float]] | None = None,
    tokens: float = 1e6,
    seed: int = 0,
    out: str | Path | None = None,
    settings: Sequence[str] = (),
) -> Front:
    """Search for smaller models of `model` and return the front.

    `constraints` are upper bounds such as `{"decode": "0.6x"}`, or lists of them for several targets; `settings`
    are further `key=value` settings as on the command line. Raises AutopruneError with one line for whatever the
    caller may have got wrong.
    """
    from autoprune.config import compose

    spaces = [space] if isinstance(space, str) else list(space)
    bounds = ",".join(f"{k}: {v}" for k, v in (constraints or {}).items())
    overrides = [
        *(f"model={model}", f"data={data}", f"space=[{','.join(spaces)}]", f"search={search}"),
        *(f"objectives=[{','.join(objectives)}]", f"tokens={tokens}", f"seed={seed}"),
        *([f"constraints={{{bounds}}}"] if bounds else []),
        *([f"out={out}"] if out is not None else []),
        *settings,
    ]
    return run_config(compose(overrides), "autoprune " + shlex.join(overrides))


def run_config(cfg: DictConfig, command: str) -> Front:
    """Run a checked configuration; prints the table of the front unless `quiet`."""
    from autoprune.progress import Progress
    from autoprune.run import pipeline

    with Progress(bool(cfg.quiet)) as progress:
        front = Front(pipeline.start(cfg, command, progress))
    _show(front, bool(cfg.quiet))
    return front


def resume(folder: str | Path, fork: str | Path | None = None, trust: bool = False) -> Front:
    """Go on with a stopped run, or with `fork` start a new run there that adopts its finished evaluations."""
    from autoprune.progress import Progress
    from autoprune.run import pipeline
    from autoprune.run.folder import command_of, load_settings

    path = Path(folder).absolute()
    cfg = load_settings(path, trust)
    with Progress(bool(cfg.quiet)) as progress:
        if fork is None:
            front = Front(pipeline.resume(path, cfg, progress))
        else:
            cfg.out = str(Path(fork).absolute())
            front = Front(pipeline.start(cfg, command_of(path), progress, adopt=path))
    _show(front, bool(cfg.quiet))
    return front


def load(folder: str | Path, kernels: bool = True) -> Any:
    """A checkpoint written by `export`, ready to run; no remote code is needed.

    Masked matrices run packed, and all else (dense linear maps, norms, attention of one token) on kernels, where these
    are faster here than the library's: `model.autoprune_kernels` says what does. A model with packed matrices runs and
    cannot be saved: that takes `kernels=False`.
    """
    from autoprune.export.checkpoint import load_checkpoint
    from autoprune.export.running import run_loaded

    model = load_checkpoint(Path(folder))
    if kernels:
        run_loaded(model, Path(folder))
    return model


def report(folders: str | Path | Sequence[str | Path], trust: bool = False) -> None:
    """Make report.html and leaderboard.md of finished runs again from their leaderboard.csv and ledger."""
    from autoprune.report import html, leaderboard
    from autoprune.report.facts import RunFacts
    from autoprune.run.folder import open_ledger
    from autoprune.run.outputs import FACTS, evaluated

    for folder in [folders] if isinstance(folders, (str, Path)) else folders:
        path = Path(folder).absolute()
        ledger = open_ledger(path)
        frame = leaderboard.read(path)
        if not (path / FACTS).is_file():
            raise LedgerError(f"{path} is not finished; continue with: autoprune resume {path}")
        facts = json.loads((path / FACTS).read_text())
        errors = facts.pop("latency_error")
        facts["latency_error"] = {k: tuple(v) for k, v in errors.items()} if errors else None
        facts["notes"] = tuple(facts["notes"])
        leaderboard.write(frame, path)
        dense = _dense_params(ledger, frame)
        print(html.write(frame, evaluated(ledger, dense), RunFacts(**facts), path))
        ledger.close()


def export(
    folder: str | Path,
    *,
    to: str | Path,
    key: str | None = None,
    params: float | str | None = None,
    prefill: float | str | None = None,
    decode: float | str | None = None,
    refit: bool | None = None,
    trust: bool = False,
    recovery: str = "none",
    recovery_steps: int | None = None,
) -> Path:
    """Write one point of a finished run as a checkpoint that is smaller, loads by itself and equals its plan.

    refit: solve its output projections once more for this very plan; None does what the run's `export.refit` says.

    With `recovery="distill"` it is trained first, for `recovery_steps` when given; its test figures go to the run's
    recovered.csv and leaderboard, beside the unrecovered ones.
    """
    from autoprune.export.checkpoint import check_destination
    from autoprune.progress import Progress
    from autoprune.report import leaderboard
    from autoprune.run.export import choose, export_plan
    from autoprune.run.folder import load_settings
    from autoprune.run.pipeline import open_run
    from autoprune.run.recovery import chosen_recovery, goes_on

    path, target = Path(folder).absolute(), Path(to).absolute()
    cfg = load_settings(path, trust)
    check_destination(target)
    row = choose(leaderboard.read(path), key, {"params": params, "prefill": prefill, "decode": decode})
    settings = chosen_recovery(cfg, recovery, recovery_steps)
    again = bool(cfg.export.refit) if refit is None else refit
    with Progress(bool(cfg.quiet)) as progress, goes_on(target):
        try:
            _print_proof(target, export_plan(open_run(path, cfg, progress), row, target, again, settings))
        finally:
            if settings is not None:
                leaderboard.write(leaderboard.read(path), path)
    return target


def recover(
    checkpoint: str | Path,
    *,
    teacher: str | Path,
    data: str | Path,
    to: str | Path,
    recovery: str = "distill",
    steps: int | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Path:
    """Train an exported checkpoint towards the dense `teacher` on the train split of `data`, and write it to `to`.

    Shapes and zeros are kept. `settings` are further `key=value` settings, e.g. `recovery.learning_rate=1e-3`.
    """
    from autoprune.progress import Progress
    from autoprune.run.recover import checkpoint_config, recover_checkpoint
    from autoprune.run.recovery import goes_on

    source, target = Path(checkpoint).absolute(), Path(to).absolute()
    cfg = checkpoint_config(str(teacher), str(data), recovery, steps, seed, settings)
    words = [f"--teacher={teacher}", f"--data={data}", f"--to={target.name}", f"--seed={seed}", *settings]
    words += [] if steps is None else [f"--recovery-steps={steps}"]
    command = "autoprune recover " + shlex.join([source.name, *words])
    with Progress(bool(cfg.quiet)) as progress, goes_on(target):
        outcome, trip = recover_checkpoint(source, target, cfg, command, progress)
    before, after = outcome.before["kl"], outcome.after["kl"]
    print(f"test kl {before:.4f} before, {after:.4f} recovered ({outcome.distilled.steps} steps)")
    _print_proof(target, trip)
    return target


def study_oracle(
    model: str | Path,
    *,
    to: str | Path,
    data: str | Path = "auto",
    plans: int = 16,
    ratio: str = "0.5x",
    steps: int = 100,
    windows: int = 8,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> Tau:
    """Kendall's tau between fitness before and after recovery, over random plans of one size; prints the table.

    `to` holds a table with a row for each plan that is done: the same call goes on there.
    """
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.oracle import Wanted, study

    wanted = Wanted(plans, ratio, windows)
    given = [f"model={model}", f"data={data}", "recovery=distill", f"recovery.steps={steps}", f"seed={seed}"]
    cfg = compose([*given, "evaluator=[divergence]", "latency.mode=off", *settings])
    words = [f"--to={to}", f"--data={data}", f"--plans={plans}", f"--ratio={ratio}", f"--steps={steps}"]
    words += [f"--windows={windows}", f"--seed={seed}", *settings]
    command = "autoprune study oracle " + shlex.join([str(model), *words])
    with Progress(bool(cfg.quiet)) as progress:
        tau, report = study(cfg, wanted, Path(to).absolute(), command, progress)
    print(report, end="")
    return tau


def study_scratch(
    model: str | Path,
    *,
    to: str | Path,
    plan: str | Path = "uniform@0.5",
    data: str | Path = "auto",
    steps: int = 300,
    seeds: int = 1,
    search_tokens: float = 0.0,
    seed: int = 0,
    settings: Sequence[str] = (),
) -> pd.DataFrame:
    """A pruned model, recovered, against its architecture trained from scratch by the same recipe; prints the table.

    scratch-E takes as many steps as the recovery; scratch-B, where `search_tokens` are given, the compute of search and
    recovery together. The frame has one row a model. The same call goes on where it stopped.
    """
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.scratch_study import REPORT, Wanted, study

    wanted = Wanted(str(plan), seeds, search_tokens)
    given = [f"model={model}", f"data={data}", "recovery=distill", f"recovery.steps={steps}", f"seed={seed}"]
    cfg = compose([*given, "evaluator=[divergence,perplexity]", "latency.mode=off", *settings])
    words = [f"--to={to}", f"--plan={plan}", f"--data={data}", f"--steps={steps}", f"--seeds={seeds}"]
    words += [f"--search-tokens={search_tokens:g}", f"--seed={seed}", *settings]
    command = "autoprune study scratch " + shlex.join([str(model), *words])
    folder = Path(to).absolute()
    with Progress(bool(cfg.quiet)) as progress:
        frame = study(cfg, wanted, folder, command, progress)
    print((folder / REPORT).read_text(encoding="utf-8"), end="")
    return frame


def _print_proof(target: Path, trip: RoundTrip) -> None:
    print(
        f"{target}: {trip.parameters:,} parameters, {trip.file_bytes:,} bytes; reloaded in a fresh process with a "
        f"largest logit difference of {trip.max_logit_difference:.1e}"
    )


def demo(out: str | Path) -> Front:
    """The main job on the built-in model, and what to try next."""
    from autoprune.config import compose

    cfg = compose([*DEMO, f"out={out}"])
    front = run_config(cfg, f"autoprune demo --out {out}")
    print("\nThree things to try:")
    print(
        f"  autoprune export {out} --params 0.6x --to smaller       # a checkpoint that loads with transformers"
    )
    print(
        "  autoprune model=docs-llama constraints='{decode: 0.6x}' objectives='[kl,decode]' out=results/faster"
    )
    print("  autoprune model=FOLDER data=TEXT_FILE tokens=2e6        # your own model and text")
    return front


def profile(model: str, to: str | Path | None = None, settings: Sequence[str] = ()) -> None:
    """Time a model's sublayers at every option on this machine; print the table, save it as a file on request."""
    from autoprune.progress import Progress
    from autoprune.run.profile import profile_model

    with Progress() as progress:
        profile_model(model, None if to is None else Path(to).absolute(), list(settings), progress)


def zoo_train(name: str, to: str | Path | None = None, data: str | None = None) -> None:
    """Train a built-in model again, or with `data` a small ViT on labelled images of one's own (`images-vit`)."""
    from autoprune.zoo import ROOM
    from autoprune.zoo.train import IMAGES, TRAINED, train_named

    if name not in (*TRAINED, IMAGES):
        raise SettingError(f"zoo: {name!r} is not a built-in model" + nearest(name, (*TRAINED, IMAGES)))
    if name == IMAGES and (to is None or data is None):
        raise SettingError(f"zoo: {name} needs --data FOLDER (labelled images) and --to DIR")
    if name != IMAGES and data is not None:
        raise SettingError(f"zoo: {name} is trained on data of its own; --data is for {IMAGES}")
    train_named(name, ROOM / name if to is None else Path(to).absolute(), data=data or "")


def bench(name: str, args: Sequence[str]) -> None:
    """Run a benchmark by name."""
    from autoprune.bench import BENCHMARKS, run_benchmark

    if name not in BENCHMARKS:
        raise SettingError(f"bench: {name!r} is unknown" + nearest(name, BENCHMARKS))
    run_benchmark(name, list(args))


def _show(front: Front, quiet: bool) -> None:
    if quiet:
        return
    from rich.console import Console

    from autoprune.report import leaderboard

    console = Console()
    console.print(leaderboard.terminal(front.frame()))
    console.print(f"report: {front.folder / 'report.html'}", soft_wrap=True, highlight=False)


def _dense_params(ledger: Ledger, board: pd.DataFrame) -> float:
    """Block parameters of the dense model, from a plan that both the ledger and the leaderboard hold."""
    searched = ledger.to_frame()
    if not len(searched):
        return 1.0
    params = dict(zip(searched["key"], searched["params"], strict=True))
    known = board[board["key"].isin(params)]
    return float(params[known["key"].iloc[0]] / known["params_ratio"].iloc[0]) if len(known) else 1.0
