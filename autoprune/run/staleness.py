"""Whether a stored latency table still tells the truth: the dense model is timed again, where that is cheap."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from autoprune.errors import MeasurementError, SettingError

if TYPE_CHECKING:
    from autoprune.hardware.table import LatencyTable
    from autoprune.hardware.workload import Workload
    from autoprune.progress import Progress

TOLERANCE = 0.10  # change of a dense time by which a table is stale
ROUNDS = 5
CHEAP = 10.0  # seconds that looking may take
PER_ROUND = 0.04  # of them for each phase of a small model: a round repeats what is short


def fresh(
    answer: str,
    table: LatencyTable,
    dense: Callable[[], Any],
    work: Workload,
    measure: Callable[[], LatencyTable],
    progress: Progress,
) -> LatencyTable:
    """The table, or with the answer `measure` a new one where the times of the dense model have changed.

    Raises SettingError then where it is `refuse`; with `keep` nothing is timed. A busy machine is not asked.
    """
    if answer == "keep" or not table.dense_ms or _seconds(table) > CHEAP:
        return table
    try:
        change = _changes(dense(), table, work)
    except MeasurementError:
        progress.say("the stored latency table was not checked: the machine is busy")
        return table
    worst = max(change, key=lambda metric: abs(change[metric]), default="")
    if not worst or abs(change[worst]) <= TOLERANCE:
        return table
    said = f"the stored latency table is stale: {worst} of the dense model changed by {change[worst]:+.0%}"
    if answer == "refuse":
        raise SettingError(f"{said}; allowed is {TOLERANCE:.0%}, latency.stale=measure measures a new one")
    progress.say(f"{said}; measuring a new one")
    return measure()


def _changes(model: Any, table: LatencyTable, work: Workload) -> dict[str, float]:
    """By metric, how much longer the dense model takes now."""
    from autoprune.hardware.endtoend import measure_models

    now = measure_models({"dense": model}, replace(work, rounds=ROUNDS))["dense"]
    return {m: getattr(now, f"{m}_ms") / then - 1 for m, then in table.dense_ms.items() if then > 0}


def _seconds(table: LatencyTable) -> float:
    """About what looking takes."""
    return ROUNDS * sum(3 * ms / 1000 + PER_ROUND for ms in table.dense_ms.values())
