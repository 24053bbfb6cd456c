"""Latency in a run: the table that predicts while searching, and the measurement of the final front."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from autoprune.errors import MeasurementError, SettingError
from autoprune.ledger import Ledger
from autoprune.merging import MergedSpace
from autoprune.objective import Split
from autoprune.pruning.masks.ladders import MaskedLadders
from autoprune.run import elsewhere
from autoprune.run.built import as_exported, as_given, changed
from autoprune.run.finals import Entry
from autoprune.run.int8 import in_int8
from autoprune.run.parts import Parts
from autoprune.run.staleness import fresh
from autoprune.space import Plan, Scalar

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.hardware.table import LatencyTable
    from autoprune.hardware.workload import Workload
    from autoprune.progress import Progress
    from autoprune.sublayers import SublayerSpace

ELSEWHERE = "The front was not timed: latency.foreign=true searches for another machine than this."
CORRECTION_PLANS = 12
SEED = 0
STOCK = "dense, as transformers runs it"
METHOD = 6  # of measuring: another one makes another table


def workload(parts: Parts) -> Workload:
    """What is timed, from the settings; of a classifier an image's tokens, or sentences no longer than a window."""
    from autoprune.hardware.workload import Workload

    latency, shape = parts.cfg.latency, parts.adapter.shape
    tokens = int(latency.prefill_tokens)
    if shape.task != "text":
        tokens = shape.tokens or min(tokens, int(parts.corpus.windows(Split.FITNESS).shape[-1]))
    try:
        return Workload(
            batch=int(latency.batch),
            prefill_tokens=tokens,
            context=int(latency.context),
            decode_steps=int(latency.decode_steps),
            threads=int(parts.cfg.threads),
            rounds=int(latency.rounds),
        )
    except SettingError as error:
        raise SettingError(str(error).replace("workload.", "latency.", 1)) from error


def latency_table(parts: Parts, stored: Path, progress: Progress) -> LatencyTable | None:
    """The run's own table if it has one, else the file the settings name, else the cache's, else measured now."""
    from autoprune.hardware.table import LatencyTable

    if stored.is_file():
        return LatencyTable.load(stored)
    latency = parts.cfg.latency
    if latency.mode == "off":
        return None
    if unknown := _unpriced(parts):
        progress.say(f"no predicted latencies: the latency table does not know {', '.join(unknown)}")
        return None
    if latency.file is not None:
        table = named_table(parts, Path(str(latency.file)).expanduser())
        if latency.foreign:
            return table
        return _fresh(parts, table, lambda: measured_table(parts, progress), progress)
    if elsewhere.wanted(parts):
        return elsewhere.table(parts, progress)
    return checked_table(parts, progress)


def checked_table(parts: Parts, progress: Progress) -> LatencyTable:
    """The cache's table of this model and machine, measured where there is none or it is stale."""
    from autoprune.hardware.table import LatencyTable

    began = time.time_ns()
    file = cached_table(parts, progress) / "latency.json"
    table = LatencyTable.load(file)
    if file.stat().st_mtime_ns >= began:
        return table

    def again() -> LatencyTable:
        found = measured_table(parts, progress)
        found.save(file)
        return found

    return _fresh(parts, table, again, progress)


def _fresh(
    parts: Parts, table: LatencyTable, measure: Callable[[], LatencyTable], progress: Progress
) -> LatencyTable:
    """A stored table, or what its staleness leads to."""
    answer, dense = str(parts.cfg.latency.stale), partial(as_exported, parts, parts.dense_plan())
    return fresh(answer, table, dense, workload(parts), measure, progress)


def _unpriced(parts: Parts) -> list[str]:
    """Plan settings of the space that change latencies in a way that the table does not hold."""
    from autoprune.hardware.terms import unpriced

    return unpriced(parts.options(), parts.adapter.shape)


def settled(parts: Parts) -> dict[str, Scalar]:
    """What all plans of the space have in common beside their options."""
    options = parts.options()
    return {n: v for s in parts.dense_plan().sublayers for n, v in s.settings if n not in options}


def facts(parts: Parts) -> dict[str, str]:
    """What latencies depend on beside machine and libraries: the kernels that models run on."""
    from autoprune.kernels import native

    ours = parts.cfg.latency.kernels and parts.device.type == "cpu"
    found = {"kernels": native.instructions() if ours else "off"}
    return found | ({"weights": "int8"} if in_int8(parts.cfg) else {})


def named_table(parts: Parts, path: Path) -> LatencyTable:
    """A table that somebody saved, here or elsewhere; raises SettingError unless it fits this run.

    Another machine's is taken only with `latency.foreign=true`.
    """
    from autoprune.hardware.table import LatencyTable

    shape = parts.adapter.shape
    if not path.is_file():
        raise SettingError(
            f"latency.file={path} does not exist; make it with `autoprune profile MODEL --to FILE`"
        )
    try:
        table = LatencyTable.load(path)
        dtype = str(parts.loaded.dtype).removeprefix("torch.")
        table.check_model(shape, dtype, parts.options(), settled(parts))
        _check_workload(table.workload, workload(parts))
        if parts.given is not None and parts.given.wider(shape) and not table.given_ms:
            raise SettingError(
                f"it has no times of the model as given; make it with hidden={parts.cfg.hidden}"
            )
    except SettingError as error:
        text = str(error).removeprefix(f"latency table {path}").removeprefix(": ").strip()
        raise SettingError(f"latency.file={path}: {text}") from error
    if not parts.cfg.latency.foreign and (difference := foreign(parts, table)):
        raise SettingError(
            f"latency.file={path} is of another machine or software: {difference}; "
            "to search for that one add latency.foreign=true"
        )
    return table


def foreign(parts: Parts, table: LatencyTable) -> str:
    """Where the table was not measured on this machine and software, the first difference."""
    from autoprune.hardware.fingerprint import fingerprint

    return table.foreign(fingerprint(int(parts.cfg.threads), str(parts.device)) | facts(parts))


def origin(parts: Parts, table: LatencyTable | None) -> str:
    """A line for the report when the predicted latencies are of another machine; else nothing."""
    if table is None or not (difference := foreign(parts, table)):
        return ""
    of = table.fingerprint
    machine = of.get("gpu") or f"{of.get('cpu')}, {of.get('threads')} threads"
    return f"Predicted latencies are those of another machine: {machine} ({difference})."


def _check_workload(measured: Workload, wanted: Workload) -> None:
    """The rounds are the table's own business; threads are in the fingerprint."""
    for name in (f.name for f in fields(measured) if f.name not in ("rounds", "threads")):
        have, want = getattr(measured, name), getattr(wanted, name)
        if have != want:
            raise SettingError(f"it was measured with {name}={have}, the settings say latency.{name}={want}")


def cached_table(parts: Parts, progress: Progress) -> Path:
    """The folder of this model's table for this machine, measured first when it is missing."""
    from autoprune.hardware.fingerprint import fingerprint

    if unknown := _unpriced(parts):
        raise SettingError(f"the latency table does not know {', '.join(unknown)}; leave it out of space=[…]")
    work = workload(parts)
    options = parts.options()
    inputs = [
        *(
            METHOD,
            asdict(parts.adapter.shape),
            fingerprint(work.threads, str(parts.device)) | facts(parts),
            asdict(work),
            str(parts.loaded.dtype),
        ),
        {name: list(values) for name, values in options.items()},
        settled(parts),
    ]
    if parts.given is not None:
        inputs.append(asdict(parts.given.adapter.shape))
    return parts.cache.folder(
        "latency", inputs, lambda folder: measured_table(parts, progress).save(folder / "latency.json")
    )


def measured_table(parts: Parts, progress: Progress, held_out: int = 0) -> LatencyTable:
    """Measure the table of this model here and now, with its error on so many held-out plans."""
    from autoprune.hardware.designs import random_plans
    from autoprune.hardware.measuring import measure_table

    space, options = option_space(parts), parts.options()
    correction = random_plans(space, CORRECTION_PLANS, SEED)
    known = {plan.key for plan in correction}
    held = [p for p in random_plans(space, held_out, SEED + 1) if p.key not in known]
    ladders = parts.ladders.quick() if isinstance(parts.ladders, MaskedLadders) else None
    with progress.stage("measuring latencies") as step:
        return measure_table(
            partial(as_exported, parts, ladders=ladders),
            *(parts.adapter.shape, parts.dense_plan(), options, workload(parts), SEED, step),
            correction_plans=correction,
            held_out_plans=held,
            facts=facts(parts),
            given=as_given(parts),
        )


def option_space(parts: Parts) -> SublayerSpace:
    """The space of a run without what does not move latencies: how experts are merged."""
    space = parts.space(None)
    return cast("SublayerSpace", space.of if isinstance(space, MergedSpace) else space)


def measure_front(
    parts: Parts, ledger: Ledger, entries: Sequence[Entry], progress: Progress
) -> dict[str, Measured]:
    """Times by plan key; none, and a note in the report, when the machine is too busy to measure on."""
    if parts.cfg.latency.mode == "off":
        return {}
    if parts.cfg.latency.foreign:
        ledger.event("note", text=ELSEWHERE)
        return {}
    try:
        found = measure_entries(parts, entries, progress)
        if stock := found.pop(STOCK, None):
            dense = next(e.plan.key for e in entries if e.name == "dense")
            ledger.event("note", text=_stock_note(stock, found[dense]))
        if elsewhere.wanted(parts):
            ledger.event("note", text=elsewhere.note(parts))
        return found
    except MeasurementError as error:
        ledger.event("note", text=f"The front was not timed: {error}.")
        progress.say(f"front not timed: {error}")
        return {}


def measure_entries(parts: Parts, entries: Sequence[Entry], progress: Progress) -> dict[str, Measured]:
    """Dense, uniform and front models end to end in one interleaved loop, by plan key.

    With them, as STOCK, the dense model as transformers runs it, where the others run on kernels.
    """
    dense = next(e.plan.key for e in entries if e.name == "dense")
    plans = {e.plan.key: e.plan for e in entries}
    return _measured(parts, plans, dense, progress, "measuring the front", stock=True)


def measure_plans(parts: Parts, plans: Mapping[str, Plan], progress: Progress) -> dict[str, Measured]:
    """Plans end to end in one interleaved loop with the dense model, by the names they have here."""
    named = {**plans, "dense": parts.dense_plan()}
    return _measured(parts, named, "dense", progress, "measuring finalists")


def _measured(
    parts: Parts, plans: Mapping[str, Plan], dense: str, progress: Progress, stage: str, stock: bool = False
) -> dict[str, Measured]:
    if elsewhere.wanted(parts):
        return elsewhere.measured(parts, plans, dense, progress, stage, stock)
    return measured_here(parts, plans, dense, progress, stage, stock)


def measured_here(
    parts: Parts, plans: Mapping[str, Plan], dense: str, progress: Progress, stage: str, stock: bool = False
) -> dict[str, Measured]:
    """Plans end to end on this machine, in one interleaved loop with the dense model, by the names they have here.

    Ratios are to the dense model, or to the model as given where that is wider.
    """
    from autoprune.hardware.endtoend import measure_models
    from autoprune.hardware.measuring import GIVEN

    models = {name: as_exported(parts, plan, progress) for name, plan in plans.items()}
    if stock and parts.cfg.latency.kernels and changed(models[dense]):
        models[STOCK] = parts.build(plans[dense])
    if (given := as_given(parts)) is not None:
        models[GIVEN], dense = given, GIVEN
    with progress.stage(stage) as step:
        found = measure_models(models, workload(parts), SEED, step, reference=dense)
    found.pop(GIVEN, None)
    return found


def _stock_note(stock: Measured, dense: Measured) -> str:
    """Both dense baselines: what the front is held against, and what it would be without our linear maps."""
    said = [
        f"{metric} {getattr(stock, f'{metric}_ms'):.2f} ms, here {getattr(dense, f'{metric}_ms'):.2f} ms "
        f"({getattr(stock, f'{metric}_ratio'):.2f}x)"
        for metric in ("prefill", "decode")
        if getattr(stock, f"{metric}_ms") is not None
    ]
    return f"All models, dense too, run on what is fastest here. Dense as transformers runs it: {'; '.join(said)}."


def copy_table(folder: Path, to: Path) -> None:
    """A cached table as a file of the user's."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "latency.json", to)
    except OSError as error:
        raise SettingError(f"--to {to} cannot be written: {error.strerror}") from error
