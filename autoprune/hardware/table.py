"""The latency table: milliseconds of a plan as base plus its sublayers; a file that machines can share."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from autoprune.errors import SettingError, SpaceError
from autoprune.hardware.fingerprint import Value, differing
from autoprune.hardware.fitting import HeldOut
from autoprune.hardware.workload import METRICS, Workload
from autoprune.shape import Shape
from autoprune.space import KINDS, Kind, SublayerPlan, is_mask

SETTING: Mapping[Kind, str] = {"attention": "kv_groups", "ffn": "width"}
UNCORRECTED: Mapping[str, tuple[float, float]] = dict.fromkeys(METRICS, (0.0, 1.0))
_SCHEMA = 2


@dataclass(frozen=True)
class Entry:
    """One option of one kind of sublayer: milliseconds before the correction, and their split-half noise (ms)."""

    kind: Kind
    option: int
    ms: Mapping[str, float]
    noise: Mapping[str, float]


@dataclass(frozen=True)
class LatencyTable:
    """A `CostModel` in milliseconds: `prefill` of a prompt and `decode` of one token, per batch.

    It holds for every model of its shape and dtype on machines of its fingerprint. `correction` holds (a, b) per
    metric: a plan costs a + b * (base and entries). `error` is empty where the table was not corrected.
    """

    base_ms: Mapping[str, float]
    entries: tuple[Entry, ...]
    workload: Workload
    fingerprint: Mapping[str, Value]
    shape: Mapping[str, Value]
    dtype: str
    correction: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(UNCORRECTED))
    error: Mapping[str, HeldOut] = field(default_factory=dict)
    dense_ms: Mapping[str, float] = field(default_factory=dict)  # the dense model, measured end to end
    dense_wall_ms: Mapping[str, float] = field(default_factory=dict)  # the same by the clock on the wall
    rounds: int = 0  # in which the sentinel was quiet and every model was left in peace at least once

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, final norm, head and the model's own overhead, corrected."""
        return {m: a + b * self.base_ms[m] for m, (a, b) in self.correction.items()}

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Corrected milliseconds of one sublayer, interpolated between measured options; 0 when it is gone.

        A masked matrix costs what the whole one does: it was measured with dense kernels. Raises SettingError outside
        the measured options, SpaceError for a setting the table does not price.
        """
        if [name for name, _ in plan.settings if not is_mask(name)] != [SETTING[plan.kind]]:
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
        """Options and their milliseconds, both rising."""
        curves: dict[Kind, dict[str, list[float]]] = {}
        for kind in KINDS:
            row = sorted((e for e in self.entries if e.kind == kind), key=lambda e: e.option)
            curves[kind] = {m: [e.ms[m] for e in row] for m in METRICS}
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
            listed = data["shape"].items()  # JSON has no tuples
            data["shape"] = {k: tuple(v) if isinstance(v, list) else v for k, v in listed}
            pairs = {metric: data["correction"][metric] for metric in METRICS}
            data["correction"] = {metric: (float(a), float(b)) for metric, (a, b) in pairs.items()}
            data["error"] = {metric: HeldOut(**held) for metric, held in data["error"].items()}
            table = LatencyTable(**data)
            _check_numbers(table)
            return table
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise SettingError(
                "not a latency table of this version; make it with `autoprune profile MODEL --to FILE`"
            ) from error

    def save(self, path: Path) -> None:
        """Write the table as JSON."""
        path.write_text(self.to_json())

    @staticmethod
    def load(path: Path) -> LatencyTable:
        """Read a saved table; raises SettingError when there is none."""
        try:
            return LatencyTable.from_json(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(f"latency table {path} cannot be read: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise SettingError(f"latency table {path} is not text") from error
        except SettingError as error:
            raise SettingError(f"latency table {path}: {error}") from error

    def foreign(self, here: Mapping[str, Value]) -> str:
        """The first field in which the machine and software it was measured on are not `here`, or nothing."""
        return differing(self.fingerprint, here)

    def check_model(self, shape: Shape, dtype: str, options: Mapping[str, Sequence[int]]) -> None:
        """Raise SettingError unless it was measured for such a model and spans these options of each setting."""
        if difference := differing({**self.shape, "dtype": self.dtype}, {**asdict(shape), "dtype": dtype}):
            raise SettingError(f"it is of another model ({difference})")
        for kind in KINDS:
            wanted = [o for o in options[SETTING[kind]] if o]
            have = self._curves[kind]["option"]
            outside = [o for o in wanted if not (have and have[0] <= o <= have[-1])]
            if outside:
                span = f"{have[0]:g}..{have[-1]:g}" if have else "none"
                raise SettingError(
                    f"it has no entry for {kind} {SETTING[kind]}={outside[0]}; measured: {span}"
                )


def _check_numbers(table: LatencyTable) -> None:
    """Raise ValueError when a time is missing or no number, or a larger option is the cheaper one."""
    for times in (table.base_ms, *(e.ms for e in table.entries)):
        if not all(0 <= float(times[m]) < float("inf") for m in METRICS):
            raise ValueError
    for curve in table._curves.values():
        if any(curve[m] != sorted(curve[m]) for m in METRICS):
            raise ValueError
