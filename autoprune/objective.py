"""What is asked of an evaluation and what came of it; dominance between results (stdlib and numpy only)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.errors import SettingError, nearest
from autoprune.space import Candidate

Array = NDArray[np.float64]


class Split(str, Enum):
    """The five disjoint parts of a corpus; the code refuses to mix them."""

    TRAIN = "train"
    CALIBRATION = "calibration"
    FITNESS = "fitness"
    SELECTION = "selection"
    TEST = "test"


class Status(str, Enum):
    """What came of a proposal; NaN never enters the ledger, a status does."""

    OK = "ok"
    FAILED = "failed"
    INFEASIBLE = "infeasible"


@dataclass(frozen=True)
class Fidelity:
    """Which windows an evaluation uses: a half-open range in the split's frozen, seeded window order."""

    split: Split
    windows: tuple[int, int]

    def __post_init__(self) -> None:
        start, stop = self.windows
        if not 0 <= start < stop:
            raise SettingError(f"fidelity windows={start}..{stop} is empty or negative")

    @property
    def count(self) -> int:
        """Number of windows."""
        return self.windows[1] - self.windows[0]


@dataclass(frozen=True)
class Proposal:
    """A candidate at a fidelity; ids count up from 0 within a phase.

    A search sees *fitness* windows only: SettingError for any other split, so that no searcher can ask for one.
    """

    id: int
    candidate: Candidate
    fidelity: Fidelity
    parents: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        split = self.fidelity.split
        if split is not Split.FITNESS:
            raise SettingError(
                f"proposal {self.id} asks for windows of split {split.value}; a search sees split fitness only"
            )


@dataclass(frozen=True)
class Result:
    """What came of a proposal; `per_window` holds one value a window for the metrics that have them."""

    proposal: Proposal
    status: Status
    metrics: Mapping[str, float] = field(default_factory=dict)
    per_window: Mapping[str, Array] = field(default_factory=dict)
    reason: str = ""

    @property
    def ok(self) -> bool:
        """Whether the metrics may be used."""
        return self.status is Status.OK


@dataclass(frozen=True)
class Objective:
    """A metric to be made small (or large)."""

    metric: str
    maximise: bool = False

    def value(self, metrics: Mapping[str, float]) -> float:
        """The value to minimise."""
        value = metrics[self.metric]
        return -value if self.maximise else value


@dataclass(frozen=True)
class Constraint:
    """An upper bound on a metric that follows from the plan alone, in the metric's own unit."""

    metric: str
    bound: float
    text: str = ""  # as the user wrote it

    def violation(self, cost: Mapping[str, float]) -> float:
        """How far above the bound, 0 when it holds; a relative slack of 1e-9 forgives summation order."""
        over = cost[self.metric] - self.bound
        return over if over > 1e-9 * max(1.0, abs(self.bound)) else 0.0


def cost_name(metric: str) -> str:
    """The metric that a user means: `kv` is short for `kv_bytes`."""
    return "kv_bytes" if metric == "kv" else metric


def parse_constraint(metric: str, value: object, dense: Mapping[str, float]) -> Constraint:
    """Read `0.6x` (of dense) or an absolute number. Raises SettingError naming what is allowed."""
    metric = cost_name(metric)
    if metric not in dense:
        raise SettingError(f"constraints.{metric} is not a cost of this run" + nearest(metric, dense))
    text = str(value).strip()
    try:
        bound = float(text[:-1]) * dense[metric] if text.endswith("x") else float(text)
    except ValueError:
        bound = math.nan
    if not (math.isfinite(bound) and bound >= 0):
        raise SettingError(f"constraints.{metric}={text} is not a bound; write 0.6x (of dense) or a number")
    return Constraint(metric, bound, text)


def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
    """True when `a` is nowhere worse and somewhere better (minimisation)."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def non_dominated(points: Sequence[Sequence[float]]) -> list[int]:
    """Indices of the non-dominated points in order of the first coordinate; of equal points only the first.

    Minimisation. O(n log n) for two objectives, O(n^2) beyond.
    """
    array = np.asarray(points, dtype=float)
    if array.size == 0:
        return []
    order = np.lexsort(array.T[::-1])
    kept: list[int] = []
    if array.shape[1] == 2:
        for index in order:
            if not kept or array[index, 1] < array[kept[-1], 1]:
                kept.append(int(index))
        return kept
    for index in order:
        worse = (array[kept] <= array[index]).all(axis=1) if kept else np.array([False])
        if not worse.any():
            kept.append(int(index))
    return kept


def jsonable(value: Any) -> Any:
    """Numpy scalars and tuples as plain JSON values."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [jsonable(v) for v in value]
    return value
