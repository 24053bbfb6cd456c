"""The stages of a run in order; each stage finds in the run folder what an earlier start of it finished."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune import __version__
from autoprune.device import make_do, searched_on, settle
from autoprune.errors import LedgerError, MeasurementError, SettingError
from autoprune.ledger import FILE, Ledger, Recorded, holds_run
from autoprune.objective import Constraint, Fidelity, Objective, Split
from autoprune.precision import FULL, fast_in_half
from autoprune.run import finals, folder
from autoprune.run.checks import check_budget, check_dense, estimate
from autoprune.run.choosing import shared_of
from autoprune.run.finalists import prepare_finals
from autoprune.run.hosting import hosting
from autoprune.run.int8 import check_int8, in_int8
from autoprune.run.keeping import Correction, KeptDriver, latencies
from autoprune.run.latency import latency_table, measure_front
from autoprune.run.outputs import write_outputs
from autoprune.run.parts import (
    PRECISION,
    Parts,
    check_finals,
    objectives,
    open_parts,
    precision_of,
    search_evaluation,
)
from autoprune.run.ranking import ranked
from autoprune.run.recovery import check_recovery
from autoprune.run.remote import spec_of
from autoprune.run.supernets import check_rebuildable, ladders_by_phase, opened
from autoprune.run.targets import PHASE, Target, TargetsDriver, driver_of, loosest, read_targets
from autoprune.run.verdicts import earlier, keep
from autoprune.space import Space, dense_costs
from autoprune.study import Budget, Study

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.executors.base import Opened
    from autoprune.hardware.table import LatencyTable
    from autoprune.progress import Progress


ROUNDED = "While searching sublayers multiplied in {}; KL on selection and test is computed in fp32."
DEVICE = "device"  # in the ledger's meta: where plans are evaluated
ADOPTS = "adopts"  # in the ledger's meta: the run that a fork takes evaluations from
Adopted = dict[str, dict[tuple[str, Fidelity], Recorded]]  # by the name of ladders, then plan key and windows


@dataclass(frozen=True)
class Run:
    """A run that is being worked on."""

    path: Path
    cfg: DictConfig
    parts: Parts
    table: LatencyTable | None
    space: Space
    objectives: tuple[Objective, ...]
    targets: tuple[Target, ...]
    progress: Progress

    @property
    def constraints(self) -> tuple[Constraint, ...]:
        """What every target allows."""
        return loosest(self.targets).constraints


def start(cfg: DictConfig, command: str, progress: Progress, adopt: Path | None = None) -> Path:
    """Begin a run in `cfg.out` and see it through; `adopt` names a run whose finished evaluations are taken over."""
    path = Path(str(cfg.out)).absolute()
    folder.claim(path)
    with folder.at_work(path), folder.resumable(path), hosting(cfg, path, progress) as executor:
        run, ledger = _begin(cfg, path, command, progress, adopt)
        return _finish(run, ledger, executor, _adopted(adopt, run))


def search_only(cfg: DictConfig, command: str, progress: Progress) -> Path:
    """Begin a run in `cfg.out`, or go on with it, until its search ends; finalists and report are left to `resume`."""
    path = Path(str(cfg.out)).absolute()
    begun = holds_run(path / FILE)
    if not begun:
        folder.claim(path)
    with folder.at_work(path), folder.resumable(path), hosting(cfg, path, progress) as executor:
        run, ledger = _reopen(path, cfg, progress) if begun else _begin(cfg, path, command, progress, None)
        started = time.monotonic()
        try:
            _search(run, ledger, executor, {})
        finally:
            ledger.event("wall", seconds=time.monotonic() - started)
            ledger.close()
    return path


def _begin(
    cfg: DictConfig, path: Path, command: str, progress: Progress, adopt: Path | None
) -> tuple[Run, Ledger]:
    run = _open(cfg, path, progress)
    _check_budget(run)
    seconds = _check_dense(run)
    size = estimate(run.parts, seconds, path)
    progress.say(
        f"self-check passed; about {size.seconds:.0f} s and {size.bytes / 1e6:.0f} MB for {size.tokens:,} tokens"
    )
    folder.save_settings(path, cfg, command, str(run.parts.device), run.parts.placement.told)
    if run.table is not None:
        run.table.save(path / folder.LATENCY)
    origin = {} if adopt is None else {ADOPTS: str(adopt)}
    where = {DEVICE: searched_on(cfg, run.parts.device)}
    ledger = Ledger.create(path / FILE, {**_identity(run), **where, **origin})
    if (precision := precision_of(cfg)) != FULL:
        ledger.event("note", text=ROUNDED.format(precision))
        if not fast_in_half(run.parts.device):
            progress.say(f"precision={precision} is slow here: this processor multiplies no bf16 itself")
    if run.parts.given is not None:
        base, width = run.space.cost(run.space.dense), run.parts.adapter.shape.hidden
        ledger.event("note", text=run.parts.given.told(base, width, int(cfg.window)))
    return run, ledger


def _reopen(path: Path, cfg: DictConfig, progress: Progress) -> tuple[Run, Ledger]:
    ledger = folder.open_ledger(path)
    before = ledger.meta().get(DEVICE, "cpu")
    settle(cfg, before)
    run = _open(cfg, path, progress)
    _check_identity(ledger, run)
    ledger.event("resumed")
    now = searched_on(cfg, run.parts.device)
    if now != before:
        text = f"Begun on {before}, gone on with on {now}: scores may differ in their last bits."
        ledger.event("note", text=text)
        progress.say(text)
    return run, ledger


def resume(path: Path, cfg: DictConfig, progress: Progress) -> Path:
    """Go on with a run that stopped; raises SettingError when it is finished."""
    with folder.at_work(path), folder.resumable(path):
        ledger = folder.open_ledger(path)
        if ledger.events("finished"):
            raise SettingError(f"{path} is finished; nothing to resume (see `autoprune report {path}`)")
        searches = not ledger.events("searched")
        ledger.close()
        with hosting(cfg, path, progress, searches) as executor:
            run, ledger = _reopen(path, cfg, progress)
            origin = Path(ledger.meta().get(ADOPTS, ""))
            adopted = _adopted(origin if holds_run(origin / FILE) else None, run)
            return _finish(run, ledger, executor, adopted)


def open_run(path: Path, cfg: DictConfig, progress: Progress) -> Run:
    """The parts of a run that exists, for export."""
    ledger = folder.open_ledger(path)
    make_do(cfg)
    run = _open(cfg, path, progress)
    _check_identity(ledger, run)
    ledger.close()
    return run


def _open(cfg: DictConfig, path: Path, progress: Progress) -> Run:
    parts = open_parts(cfg, progress)
    check_recovery(parts)
    if in_int8(cfg):
        check_int8(parts)
    prepare_finals(parts)
    table = _table(parts, path, progress)
    space = parts.space(table)
    check_finals(cfg, parts.final_evaluators)
    wanted = objectives(cfg, space, parts.evaluators)
    return Run(path, cfg, parts, table, space, wanted, read_targets(cfg.constraints, space), progress)


def _table(parts: Parts, path: Path, progress: Progress) -> LatencyTable | None:
    """The latency table; on a busy machine none, unless an objective or constraint needs it.

    A run that began without one goes on without one: its ledger has no predictions either.
    """
    if (path / FILE).is_file() and not (path / folder.LATENCY).is_file():
        return None
    try:
        return latency_table(parts, path / folder.LATENCY, progress)
    except MeasurementError as error:
        if {"prefill", "decode"} & {*parts.cfg.objectives, *parts.cfg.constraints}:
            raise
        progress.say(f"no latency predictions: {error}")
        return None


def _check_budget(run: Run) -> None:
    """Raise SettingError for a budget that pays for nothing."""
    phase = _driver(run).phase(0)
    check_rebuildable(run.parts, phase)
    check_budget(phase, Budget(int(run.cfg.tokens), run.cfg.evaluations))


def _check_dense(run: Run) -> float:
    with run.progress.stage("self-check"):
        evaluation = search_evaluation(run.parts, run.objectives)
        windows = run.parts.corpus.count(Split.FITNESS)
        if evaluation.precision != FULL:
            check_dense(run.parts, run.parts.evaluation(run.parts.evaluators), windows)
        return check_dense(run.parts, evaluation, windows)


def _identity(run: Run) -> dict[str, str]:
    return {
        "version": __version__,
        **run.parts.digests,
        "space": run.space.digest(),
    }


def _check_identity(ledger: Ledger, run: Run) -> None:
    stored = ledger.meta()
    for name, value in _identity(run).items():
        if stored.get(name) != value:
            raise LedgerError(
                f"{run.path}: the ledger's {name} is {stored.get(name)}, now it is {value}; "
                "start a new run from it with `autoprune resume --fork NEW`"
            )


def _finish(run: Run, ledger: Ledger, executor: Opened, adopted: Adopted) -> Path:
    started = time.monotonic()
    try:
        _search(run, ledger, executor, adopted)
        executor.close()  # nothing of it may run while the front is timed
        entries = ranked(run, ledger, _driver(run))
        measured = measure_front(run.parts, ledger, entries, run.progress)
        ledger.event("wall", seconds=time.monotonic() - started)
        write_outputs(run, ledger, entries, measured)
        ledger.event("finished")
    except KeyboardInterrupt:
        ledger.event("wall", seconds=time.monotonic() - started)
        ledger.event("interrupted")
        raise
    finally:
        ledger.close()
    return run.path


def _search(run: Run, ledger: Ledger, executor: Opened, adopted: Adopted) -> None:
    if ledger.events("searched"):
        return
    dense = dict(dense_costs(run.space))
    driver, held = _driver(run), ""
    if len(driver.targets) > 1:
        run.progress.say("one after the other: " + ", ".join(t.name for t in driver.targets))
    while (phase := driver.next(ledger)) is not None or _missed(run, ledger, driver, executor):
        if phase is None:
            held = ""  # the executor was let go of while finalists were timed
            continue
        parts = opened(run.parts, ledger, phase, run.progress)
        if parts.ladder_folder.name != held:
            executor.open(search_evaluation(parts, run.objectives), spec_of(parts, phase.supernet))
            held = parts.ladder_folder.name
        with run.progress.search(phase.budget.tokens or 0, run.objectives, dense) as bar:
            known = earlier(ledger, driver, phase.number)
            reason = Study(phase, ledger, executor, bar, adopted.get(held), known).run()
        ledger.event(PHASE, number=phase.number, reason=reason, **finals.named(phase.searcher))
    reason = ledger.events(PHASE)[-1]["reason"]
    ledger.event("searched", reason=reason, tokens=ledger.tokens())
    run.progress.say(f"search stopped on {reason} after {ledger.tokens():,} tokens")


def _missed(run: Run, ledger: Ledger, driver: TargetsDriver, executor: Opened) -> bool:
    """Measure what the phases found, where there are latency targets; whether one is searched again."""
    if isinstance(driver, KeptDriver) and driver.unmeasured(ledger):
        executor.close()  # nothing of it may run meanwhile
    return keep(run, ledger, driver)


def _driver(run: Run) -> TargetsDriver:
    windows = run.parts.corpus.count(Split.FITNESS)
    allocations = run.parts.allocations()
    shared = shared_of(run.cfg, run.space, run.objectives, run.targets, windows, allocations)
    driver, latency, table = driver_of(shared), run.cfg.latency, run.table
    checked = table is not None and latency.mode != "off" and not latency.foreign
    if not checked or type(driver) is not TargetsDriver or not any(map(latencies, run.targets)):
        return driver

    def reprice(correction: Correction) -> Space:
        assert table is not None
        return run.parts.space(replace(table, correction=dict(correction)))

    return KeptDriver(shared, run.targets, reprice, int(latency.phases))


def _adopted(source: Path | None, run: Run) -> Adopted:
    """Finished evaluations of another run on the same model, corpus and ladders."""
    if source is None:
        return {}
    other = folder.open_ledger(source)
    stored, identity = other.meta(), _identity(run)
    for name in ("model", "corpus", "ladders", "masks", PRECISION):
        if stored.get(name) != identity.get(name):
            raise LedgerError(
                f"{source}: its {name} is {stored.get(name)}, here it is {identity.get(name)}; nothing fits"
            )
    found: Adopted = {}
    rebuilt = ladders_by_phase(other)
    for phase, recorded in other.recorded():
        if recorded.origin in ("evaluated", "adopted"):
            at = (recorded.key, recorded.result.proposal.fidelity)
            found.setdefault(rebuilt.get(phase, identity["ladders"]), {})[at] = recorded
    other.close()
    return found
