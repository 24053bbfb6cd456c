"""Latency in a run: the table that predicts while searching, and the measurement of the final front."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.errors import SettingError
from autoprune.run.finals import Entry
from autoprune.run.parts import Parts

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.hardware.table import LatencyTable
    from autoprune.hardware.workload import Workload
    from autoprune.progress import Progress

CALIBRATION_PLANS = 12
SEED = 0


def workload(parts: Parts) -> Workload:
    """What is timed, from the settings."""
    from autoprune.hardware.workload import Workload

    latency = parts.cfg.latency
    try:
        return Workload(
            batch=int(latency.batch),
            prefill_tokens=int(latency.prefill_tokens),
            context=int(latency.context),
            decode_steps=int(latency.decode_steps),
            threads=int(parts.cfg.threads),
            rounds=int(latency.rounds),
        )
    except SettingError as error:
        raise SettingError(str(error).replace("workload.", "latency.", 1)) from error


def latency_table(parts: Parts, stored: Path, progress: Progress) -> LatencyTable | None:
    """The run's own table if it has one, else the file the settings name, else the cache's, else measured now."""
    from autoprune.hardware.fingerprint import fingerprint
    from autoprune.hardware.table import LatencyTable

    if stored.is_file():
        return LatencyTable.load(stored)
    latency = parts.cfg.latency
    if latency.mode == "off":
        return None
    if latency.file is not None:
        path = Path(str(latency.file)).expanduser()
        if not path.is_file():
            raise SettingError(
                f"latency.file={path} does not exist; make it with `autoprune profile MODEL --to FILE`"
            )
        return LatencyTable.load(path, fingerprint(int(parts.cfg.threads)))
    folder = cached_table(parts, progress)
    return LatencyTable.load(folder / "latency.json")


def cached_table(parts: Parts, progress: Progress) -> Path:
    """The folder of this model's table for this machine, measured first when it is missing."""
    from autoprune.hardware.fingerprint import fingerprint
    from autoprune.hardware.table import measure_table, random_plans

    work = workload(parts)
    shape = parts.adapter.shape
    options = parts.space_part.options(shape)
    inputs = [
        *(parts.loaded.digest, fingerprint(work.threads), asdict(work), str(parts.loaded.dtype)),
        {name: list(values) for name, values in options.items()},
    ]

    def build(folder: Path) -> None:
        with progress.stage("measuring latencies") as step:
            plans = random_plans(shape, options["kv_groups"], options["width"], CALIBRATION_PLANS, SEED)
            table = measure_table(
                parts.build, shape, options["kv_groups"], options["width"], work, SEED, step, plans
            )
        table.save(folder / "latency.json")

    return parts.cache.folder("latency", inputs, build)


def measure_entries(parts: Parts, entries: Sequence[Entry], progress: Progress) -> dict[str, Measured]:
    """Dense, uniform and front models end to end in one interleaved loop, by plan key."""
    from autoprune.hardware.endtoend import measure_models

    models = {e.plan.key: parts.build(e.plan) for e in entries}
    dense = next(e.plan.key for e in entries if e.name == "dense")
    with progress.stage("measuring the front") as step:
        return measure_models(models, workload(parts), SEED, step, reference=dense)


def copy_table(folder: Path, to: Path) -> None:
    """A cached table as a file of the user's."""
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / "latency.json", to)
    except OSError as error:
        raise SettingError(f"--to {to} cannot be written: {error.strerror}") from error
