"""The latency table: milliseconds of a plan as base plus its sublayers; a file that machines can share."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from autoprune.errors import SettingError, SpaceError
from autoprune.hardware.dropping import drops_tokens, flows
from autoprune.hardware.fingerprint import Value, differing
from autoprune.hardware.fitting import HeldOut
from autoprune.hardware.parts import WHOLE, Flow, Part, Term
from autoprune.hardware.terms import SIZES, terms_of
from autoprune.hardware.workload import METRICS, Workload, metrics_of
from autoprune.patterns import pattern_of
from autoprune.shape import Shape
from autoprune.space import Kind, Plan, Scalar, SublayerPlan, is_mask

UNCORRECTED: Mapping[str, tuple[float, float]] = dict.fromkeys(METRICS, (0.0, 1.0))
_SCHEMA = 4


@dataclass(frozen=True)
class Entry:
    """A `Part` of one kind of sublayer: milliseconds before the correction, and their split-half noise (ms)."""

    kind: Kind
    name: str
    option: int
    ms: Mapping[str, float]
    noise: Mapping[str, float]

    @property
    def text(self) -> str:
        """Readable, e.g. `ffn width 128`."""
        return Part(self.kind, self.name, self.option).text


@dataclass(frozen=True)
class LatencyTable:
    """A `CostModel` in milliseconds: `prefill` of a prompt and `decode` of one token, per batch.

    It holds for every model of its shape and dtype on machines of its fingerprint. `options` are those of every plan
    setting that were measured, `settled` what all measured plans had in common besides. `correction` holds (a, b) per
    metric: a plan costs a + b * (base and entries). `error` is empty where the table was not corrected.
    """

    base_ms: Mapping[str, float]
    entries: tuple[Entry, ...]
    workload: Workload
    fingerprint: Mapping[str, Value]
    shape: Mapping[str, Any]
    dtype: str
    options: Mapping[str, Sequence[int]]
    settled: Mapping[str, Scalar] = field(default_factory=dict)
    correction: Mapping[str, tuple[float, float]] = field(default_factory=lambda: dict(UNCORRECTED))
    error: Mapping[str, HeldOut] = field(default_factory=dict)
    dense_ms: Mapping[str, float] = field(default_factory=dict)  # the dense model, measured end to end
    dense_wall_ms: Mapping[str, float] = field(default_factory=dict)  # the same by the clock on the wall
    given_ms: Mapping[str, float] = field(default_factory=dict)  # a wider model that ratios are to
    graphs: Sequence[
        str
    ] = ()  # metrics that were timed by replaying CUDA graphs, on a GPU; the others were not
    skew: float = 0.0  # of experts' routing, as measured (`terms.hits`)
    rounds: int = 0  # in which the sentinel was quiet and every model was left in peace at least once

    @property
    def metrics(self) -> tuple[str, ...]:
        """What it prices."""
        return metrics_of(str(self.shape.get("task", "text")))

    @cached_property
    def base(self) -> Mapping[str, float]:
        """Embedding, final norm, head and the model's own overhead, corrected."""
        return {m: self.correction[m][0] + self.correction[m][1] * self.base_ms[m] for m in self.metrics}

    def coupled(self, settings: Collection[str]) -> Collection[str]:
        """What depends on the tokens that earlier blocks left over."""
        return self.metrics if drops_tokens(settings) else ()

    def plan(self, plan: Plan) -> dict[str, float]:
        """Corrected milliseconds of a plan that drops tokens on the way."""
        total = dict(self.base)
        tokens = self.workload.prefill_tokens
        for sublayer, flow in zip(
            plan.sublayers, flows(plan, tokens, int(self.shape["specials"])), strict=True
        ):
            for metric, ms in self._raw(sublayer, flow).items():
                total[metric] += self.correction[metric][1] * ms
        return total

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Corrected milliseconds of one sublayer, interpolated between measured options; 0 when it is gone.

        Raises SettingError outside the measured options, SpaceError for a setting the table does not price.
        """
        priced = self._raw(plan, WHOLE)
        return {m: self.correction[m][1] * priced[m] for m in self.metrics}

    def _raw(self, plan: SublayerPlan, flow: Flow) -> dict[str, float]:
        """Milliseconds before the correction."""
        names = [name for name, _ in plan.settings]
        if unknown := [n for n in names if n not in self._priced and n not in self.settled]:
            raise SpaceError(f"the latency table does not price {unknown[0]} of {dict(plan.settings)}")
        total = dict.fromkeys(self.metrics, 0.0)
        for term, rows in () if plan.gone else self._terms[plan.kind]:
            for metric in self.metrics:
                amounts = term.amounts(plan, metric, flow)
                total[metric] += sum(a * e.ms[metric] for a, e in zip(amounts, rows, strict=True))
        return total

    @cached_property
    def terms(self) -> tuple[Term, ...]:
        """What the entries are of, in their order."""
        work = self.workload
        return terms_of(Shape(**self.shape), *work.sizes, self.options, self.skew)

    @cached_property
    def _terms(self) -> Mapping[Kind, list[tuple[Term, tuple[Entry, ...]]]]:
        """The terms of each kind of sublayer with their entries."""
        found: dict[Kind, list[tuple[Term, tuple[Entry, ...]]]] = {"attention": [], "ffn": []}
        at = 0
        for term in self.terms:
            found[term.kind].append((term, self.entries[at : at + len(term.parts)]))
            at += len(term.parts)
        return found

    @cached_property
    def _priced(self) -> frozenset[str]:
        """Settings that a plan may have; of masks, those in a measured pattern."""
        return frozenset(self.options)

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
            for name in ("shape", "options"):  # JSON has no tuples
                data[name] = {k: tuple(v) if isinstance(v, list) else v for k, v in data[name].items()}
            pairs = {m: data["correction"][m] for m in metrics_of(str(data["shape"].get("task", "text")))}
            data["correction"] = {metric: (float(a), float(b)) for metric, (a, b) in pairs.items()}
            data["graphs"] = tuple(data.get("graphs", ()))
            data["error"] = {metric: HeldOut(**held) for metric, held in data["error"].items()}
            table = LatencyTable(**data)
            _check(table)
            return table
        except (ValueError, KeyError, TypeError, IndexError, AttributeError, SettingError) as error:
            raise SettingError(
                "not a latency table of this version; make it with `autoprune profile MODEL --to FILE`"
            ) from error

    def save(self, path: Path) -> None:
        """Write the table as JSON; whoever reads meanwhile finds the old or the new one."""
        scratch = path.with_name(f".{path.name}.{os.getpid()}")
        scratch.write_text(self.to_json())
        os.replace(scratch, path)

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

    def check_model(
        self,
        shape: Shape,
        dtype: str,
        options: Mapping[str, Sequence[int]],
        settled: Mapping[str, Scalar] | None = None,
    ) -> None:
        """Raise SettingError unless it was measured for such a model and spans these options of each setting."""
        if difference := differing({**self.shape, "dtype": self.dtype}, {**asdict(shape), "dtype": dtype}):
            raise SettingError(f"it is of another model ({difference})")
        for name, wanted in options.items():
            self._check_span(name, wanted)
        for name, value in (settled or {}).items():
            if self.settled.get(name, value) != value:
                raise SettingError(f"it was measured with {name}={self.settled[name]}, the space has {value}")

    def _check_span(self, name: str, wanted: Sequence[int]) -> None:
        """Raise SettingError where an option is beyond the measured ones; a full mask needs no entry."""
        size = name in (*SIZES.values(), "experts")
        full = pattern_of(name.partition(".")[2]).full if is_mask(name) else None
        have = [o for o in self.options.get(name, ()) if o or not size]
        for option in (o for o in wanted if (o or not size) and o != full):
            if not have or not min(have) <= option <= max(have):
                span = f"{min(have)}..{max(have)}" if have else "none"
                raise SettingError(f"it has no entry for {name}={option}; measured: {span}")


def _check(table: LatencyTable) -> None:
    """Raise ValueError when entries are missing or are no numbers, or a larger option is the cheaper one."""
    parts = [part for term in table.terms for part in term.parts]
    if [(p.kind, p.name, p.option) for p in parts] != [(e.kind, e.name, e.option) for e in table.entries]:
        raise ValueError
    for times in (table.base_ms, *(e.ms for e in table.entries)):
        if not all(abs(float(times[m])) < float("inf") for m in table.metrics):
            raise ValueError
    for metric in table.metrics:
        before = 0.0
        for part, entry in zip(parts, table.entries, strict=True):
            low = before if part.after else float("-inf") if part.signed else 0.0
            if (before := entry.ms[metric]) < low - 1e-9 or table.base_ms[metric] < -1e-9:
                raise ValueError
