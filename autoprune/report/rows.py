"""The rows of a leaderboard: their columns, their parts (dense, uniform, front) and safe access to their cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

PHASES = ("prefill", "decode")
TEXT = ("key", "method", "name", "ladders", "plan")
COUNTS = ("seed", "tokens", "evaluations")
RECOVERED = ("kl_test_recovered", "perplexity_test_recovered")  # never in the columns of the plan as found
COLUMNS = (
    *("key", "method", "seed", "tokens", "evaluations"),
    *("params_ratio", "params_total_ratio", "flops_ratio", "kv_ratio", "bytes_ratio"),
    *("prefill_ms", "prefill_ratio", "decode_ms", "decode_ratio"),
    *("kl_fitness", "kl_selection", "kl_test", "perplexity_test"),
    *("name", "prefill_low", "prefill_high", "decode_low", "decode_high"),
    *("prefill_pred_ms", "decode_pred_ms", "plan"),
)
LADDERS = (
    "ladders"  # the name of those that hold a row's weights, empty for the run's own; absent in old files
)
NUMBERS = tuple(c for c in (*COLUMNS, *RECOVERED) if c not in TEXT)
QUALITY = ("kl_test", "kl_selection", "kl_fitness")


def complete(rows: pd.DataFrame) -> pd.DataFrame:
    """A copy with all of `COLUMNS`, `RECOVERED` and `LADDERS` in order (NaN where absent), as floats, then the rest."""
    known = (*COLUMNS, *RECOVERED, LADDERS)
    order = [*known, *(c for c in rows.columns if c not in known)]
    frame = rows.reindex(columns=order).reset_index(drop=True)
    for column in NUMBERS:
        frame[column] = pd.to_numeric(frame[column]).astype(float)
    return frame


def dense(rows: pd.DataFrame) -> pd.Series | None:
    """The dense row, or None."""
    hits = rows[rows["name"] == "dense"]
    return None if hits.empty else hits.iloc[0]


def uniform(rows: pd.DataFrame) -> pd.DataFrame:
    """The `uniform@r` rows, largest first."""
    return _sorted(rows[rows["name"].astype(str).str.startswith("uniform@")])


def is_baseline(rows: pd.DataFrame) -> pd.Series:
    """Which rows are of plans that no search has found: `uniform@r` and those of allocators."""
    kinds = rows["name"].astype(str).str.partition("@")
    return (kinds[1] == "@") & (kinds[0] != "target")


def baselines(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of `uniform@r` and of allocators, largest first."""
    return _sorted(rows[is_baseline(rows)])


def front(rows: pd.DataFrame) -> pd.DataFrame:
    """The front points, largest first."""
    return _sorted(rows[rows["name"].astype(str).str.startswith("front")])


def size_column(rows: pd.DataFrame) -> str:
    """The column by which sizes are compared: `params_ratio`, or `flops_ratio` where no row has fewer parameters."""
    same = rows["params_ratio"].eq(1).all() and "flops_ratio" in rows and rows["flops_ratio"].lt(1).any()
    return "flops_ratio" if same else "params_ratio"


def _sorted(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.sort_values(size_column(rows), ascending=False, kind="stable")


def spread(rows: pd.DataFrame, limit: int) -> pd.DataFrame:
    """At most `limit` rows, evenly spread over the given order, both ends included."""
    if len(rows) <= limit:
        return rows
    return rows.iloc[np.unique(np.linspace(0, len(rows) - 1, limit).round().astype(int))]


def number(row: pd.Series | Mapping[str, Any] | None, column: str) -> float | None:
    """A cell as a float; None where it was not measured."""
    value = None if row is None else row.get(column)
    if value is None or value is pd.NA or not math.isfinite(float(value)):
        return None
    return float(value)


def word(row: pd.Series | Mapping[str, Any] | None, column: str) -> str:
    """A cell as text; empty where it is missing."""
    value = None if row is None else row.get(column)
    return "" if value is None or value is pd.NA or value != value else str(value)


def quality(rows: pd.DataFrame) -> str:
    """The column compared: `kl_test`, or, before the front was tested, `kl_selection`, then `kl_fitness`."""
    points = front(rows)
    return next((c for c in QUALITY if points[c].notna().any()), QUALITY[0])


def quality_label(column: str) -> str:
    """`kl_test` as `test KL`."""
    return f"{column.removeprefix('kl_')} KL"


def interval(row: pd.Series | None, phase: str) -> tuple[float, float] | None:
    """The interval of a measured ratio: that of the milliseconds, scaled like the ratio itself."""
    cells = [number(row, f"{phase}_{end}") for end in ("low", "high", "ms", "ratio")]
    low, high, middle, ratio = cells
    if low is None or high is None or not middle or ratio is None:
        return None
    return low / middle * ratio, high / middle * ratio
