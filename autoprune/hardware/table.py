"""The latency table: milliseconds of a plan as base plus its sublayers, each measured inside a real model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from random import Random

import numpy as np
from transformers import PreTrainedModel

from autoprune.errors import SettingError, SpaceError
from autoprune.hardware.fingerprint import Value, differing, fingerprint, last_level_cache
from autoprune.hardware.fitting import held_out_error, relative_line, rising
from autoprune.hardware.timing import Progress, Samples
from autoprune.hardware.workload import METRICS, Workload, sample_models
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import KINDS, Kind, Plan, SublayerPlan, plan_cost

Build = Callable[[Plan], PreTrainedModel]
SETTING: Mapping[Kind, str] = {"attention": "kv_groups", "ffn": "width"}
UNCORRECTED: Mapping[str, tuple[float, float]] = dict.fromkeys(METRICS, (0.0, 1.0))
FEWEST_PLANS = 4  # two coefficients, each plan held out once
_SCHEMA = 1


@dataclass(frozen=True)
class Entry:
    """One option of one kind of sublayer: milliseconds as measured, and their split-half noise (in ms)."""

    kind: Kind
    option: int
    copies: int  # blocks that held it while it was measured
    ms: Mapping[str, float]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class LatencyTable:
    """A `CostModel` in milliseconds: `prefill` of a prompt and `decode` of one token, per batch.

    `correction` holds (a, b) per metric: a plan costs a + b * (sum of what was measured). `error` holds the
    mean and the largest relative error on held-out plans, and is empty until the table is calibrated.
    """

    base_ms: Mapping[str, float]
    entries: tuple[Entry, ...]
    workload: Workload
    fingerprint: Mapping[str, Value]
    dtype: str
    correction: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(UNCORRECTED))
    error: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, final norm, head and the model's own overhead, corrected."""
        return {m: a + b * self.base_ms[m] for m, (a, b) in self.correction.items()}

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Corrected milliseconds of one sublayer, interpolated between measured options; 0 when it is gone.

        Raises SettingError outside the measured options, SpaceError for a setting the table does not price.
        """
        if [name for name, _ in plan.settings] != [SETTING[plan.kind]]:
            raise SpaceError(f"the latency table prices {SETTING[plan.kind]} only, not {dict(plan.settings)}")
        if plan.gone:
            return dict.fromkeys(METRICS, 0.0)
        option = int(plan.get(SETTING[plan.kind]))
        options = self._curves[plan.kind]["option"]
        if not options or not options[0] <= option <= options[-1]:
            span = f"{options[0]:g}..{options[-1]:g}" if options else "nothing"
            what = f"{plan.kind} {SETTING[plan.kind]}={option}"
            raise SettingError(f"{what} is outside the latency table, which measured {span}")
        curve = self._curves[plan.kind]
        return {m: b * float(np.interp(option, options, curve[m])) for m, (_, b) in self.correction.items()}

    @cached_property
    def _curves(self) -> dict[Kind, dict[str, list[float]]]:
        """Options and their milliseconds, made to rise: noise must not make a smaller option dearer."""
        curves: dict[Kind, dict[str, list[float]]] = {}
        for kind in KINDS:
            row = sorted((e for e in self.entries if e.kind == kind), key=lambda e: e.option)
            curves[kind] = {m: rising([e.ms[m] for e in row]) for m in METRICS}
            curves[kind]["option"] = [float(e.option) for e in row]
        return curves

    def to_json(self) -> str:
        """Canonical JSON; floats keep every bit."""
        return json.dumps({"schema": _SCHEMA, **asdict(self)}, indent=1, sort_keys=True)

    @staticmethod
    def from_json(text: str) -> LatencyTable:
        """Exact inverse of `to_json`; raises SettingError on anything else."""
        try:
            data = json.loads(text)
            if data.pop("schema") != _SCHEMA:
                raise ValueError
            data["entries"] = tuple(Entry(**entry) for entry in data["entries"])
            data["workload"] = Workload(**data["workload"])
            for name in ("correction", "error"):
                data[name] = {metric: (pair[0], pair[1]) for metric, pair in data[name].items()}
            return LatencyTable(**data)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise SettingError(f"not a latency table of this version: {text[:60]!r}") from error

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        path.write_text(self.to_json())

    @staticmethod
    def load(path: Path, expect_fingerprint: Mapping[str, Value] | None = None) -> LatencyTable:
        """Read a saved table; raises SettingError when it was measured under another fingerprint."""
        try:
            table = LatencyTable.from_json(path.read_text())
        except OSError as error:
            raise SettingError(f"latency table {path} cannot be read: {error.strerror}") from error
        if expect_fingerprint is not None:
            table.check_fingerprint(expect_fingerprint, str(path))
        return table

    def check_fingerprint(self, here: Mapping[str, Value], name: str = "") -> None:
        """Raise SettingError naming the first field in which the table's fingerprint is not `here`."""
        if difference := differing(self.fingerprint, here):
            raise SettingError(f"{name or 'latency table'} was measured with {difference}; measure it again")


def measure_table(
    build: Build,
    shape: Shape,
    kv_options: Sequence[int],
    ffn_options: Sequence[int],
    workload: Workload,
    seed: int = 0,
    progress: Progress | None = None,
    calibration_plans: Sequence[Plan] = (),
    allow_contended: bool = False,
) -> LatencyTable:
    """Measure every option (zero needs none, the full one is added), calibrate on these plans, in one loop.

    An entry is the time of a model that keeps this option in its first blocks and nothing else, less that of
    the model that keeps nothing, per block. All models are in memory at once.
    """
    if calibration_plans:
        _check_plans(calibration_plans)
    base = build(_only(shape, "ffn", 0, 0))
    device = str(base.device)
    options = {"attention": {*kv_options, shape.kv_groups}, "ffn": {*ffn_options, shape.ffn}}
    probes = [(k, o, _copies(shape, k, o, device)) for k in KINDS for o in sorted(options[k] - {0})]
    models = {"base": base} | {f"{k} {o}": build(_only(shape, k, o, copies)) for k, o, copies in probes}
    models |= {f"plan {i}": build(plan) for i, plan in enumerate(calibration_plans)}
    samples = sample_models(models, workload, seed, progress, allow_contended)
    table = LatencyTable(
        base_ms={m: 1000 * samples["base"][m].median for m in METRICS},
        entries=tuple(_entry(k, o, n, samples[f"{k} {o}"], samples["base"]) for k, o, n in probes),
        workload=workload,
        fingerprint=fingerprint(workload.threads, device),
        dtype=str(base.dtype).removeprefix("torch."),
    )
    if not calibration_plans:
        return table
    return _corrected(table, calibration_plans, [samples[f"plan {i}"] for i in range(len(calibration_plans))])


def calibrate(
    table: LatencyTable,
    build: Build,
    plans: Sequence[Plan],
    seed: int = 0,
    progress: Progress | None = None,
    allow_contended: bool = False,
) -> LatencyTable:
    """Measure these plans end to end and fit the correction to them; the old correction is forgotten."""
    _check_plans(plans)
    models = {str(i): build(plan) for i, plan in enumerate(plans)}
    table.check_fingerprint(fingerprint(table.workload.threads, str(models["0"].device)))
    samples = sample_models(models, table.workload, seed, progress, allow_contended)
    return _corrected(table, plans, [samples[str(i)] for i in range(len(plans))])


def random_plans(
    shape: Shape, kv_options: Sequence[int], ffn_options: Sequence[int], count: int = 12, seed: int = 0
) -> list[Plan]:
    """The dense plan and `count - 1` random ones, small to large, with unlike blocks, to calibrate on."""
    rng = Random(seed)
    groups, widths = sorted({*kv_options, shape.kv_groups}), sorted({*ffn_options, shape.ffn})
    plans = [Plan.of([(shape.kv_groups, shape.ffn)] * shape.blocks)]
    for level in (index / count for index in range(1, count)):
        pairs = [(_near(level, groups, rng), _near(level, widths, rng)) for _ in range(shape.blocks)]
        plans.append(Plan.of(pairs))
    return plans


def _near(level: float, options: Sequence[int], rng: Random) -> int:
    share = min(max(level + rng.uniform(-0.35, 0.35), 0.0), 1.0)
    return options[round(share * (len(options) - 1))]


def _only(shape: Shape, kind: Kind, option: int, blocks: int) -> Plan:
    """The plan that keeps this option in its first blocks and nothing else."""
    pair = (option, 0) if kind == "attention" else (0, option)
    return Plan.of([pair] * blocks + [(0, 0)] * (shape.blocks - blocks))


def _copies(shape: Shape, kind: Kind, option: int, device: str) -> int:
    """Blocks that hold a probe: their weights exceed the head and four times the cache, if blocks suffice."""
    cache = last_level_cache(device)
    if cache is None:
        return shape.blocks
    size = AnalyticCosts(shape).sublayer(0, SublayerPlan.of(kind, **{SETTING[kind]: option}))["bytes"]
    head = shape.vocabulary * shape.hidden * shape.bytes_per_value
    return min(shape.blocks, math.ceil(max(4 * cache, head) / size))


def _entry(
    kind: Kind, option: int, copies: int, item: Mapping[str, Samples], base: Mapping[str, Samples]
) -> Entry:
    gains = {m: item[m].minus(base[m]).per(copies) for m in METRICS}
    ms = {m: max(0.0, 1000 * s.median) for m, s in gains.items()}
    return Entry(kind, option, copies, ms, {m: 1000 * s.half_gap for m, s in gains.items()})


def _corrected(
    table: LatencyTable, plans: Sequence[Plan], samples: Sequence[Mapping[str, Samples]]
) -> LatencyTable:
    raw = replace(table, correction=dict(UNCORRECTED))
    sums = [plan_cost(plan, raw) for plan in plans]
    correction, error = {}, {}
    for metric in METRICS:
        predicted = [cost[metric] for cost in sums]
        measured = [1000 * s[metric].median for s in samples]
        correction[metric] = relative_line(predicted, measured)
        error[metric] = held_out_error(predicted, measured)
    return replace(table, correction=correction, error=error)


def _check_plans(plans: Sequence[Plan]) -> None:
    if (count := len({plan.key for plan in plans})) < FEWEST_PLANS:
        raise SettingError(f"calibration takes at least {FEWEST_PLANS} different plans, not {count}")
