"""What the rows say in a few numbers: the front against uniform, its coverage, its test gap, the headline."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pandas as pd

from autoprune.report import text
from autoprune.report.rows import (
    PHASES,
    complete,
    dense,
    front,
    interval,
    number,
    quality,
    quality_label,
    size_column,
    uniform,
    word,
)

SAME_SIZE = 0.01  # a uniform row this much smaller still counts as the same size
HEADLINE = 0.5  # the size the headline speaks of
Verdict = Literal["faster", "slower", "not told apart", "no interval"]


def comparison(rows: pd.DataFrame) -> pd.DataFrame:
    """Per uniform row, largest first, the largest front point that is no larger, and the KL reduction in per cent.

    Sizes are the rows' own (see `size_column`), not the nominal one in the name. Columns: `uniform, uniform_ratio,
    uniform_kl, front_ratio, front_kl, key, reduction` (positive when the front is better); NaN where not measured.
    """
    frame = complete(rows)
    column = quality(frame)
    measure = size_column(frame)
    points = front(frame).dropna(subset=[measure, column])
    records = []
    for _, row in uniform(frame).iterrows():
        within = points[points[measure] <= row[measure] + 1e-9]
        best = within.iloc[0] if len(within) else None
        theirs, ours = number(row, column), number(best, column)
        known = theirs is not None and ours is not None and theirs > 0
        records.append(
            {
                "uniform": word(row, "name"),
                "uniform_ratio": row[measure],
                "uniform_kl": theirs,
                "front_ratio": number(best, measure),
                "front_kl": ours,
                "key": word(best, "key"),
                "reduction": 100 * (1 - ours / theirs) if known else None,  # type: ignore[operator]
            }
        )
    columns = ["uniform", "uniform_ratio", "uniform_kl", "front_ratio", "front_kl", "key", "reduction"]
    table = pd.DataFrame(records, columns=columns)
    numeric = [c for c in columns if c not in ("uniform", "key")]
    return table.astype(dict.fromkeys(numeric, float))


def beside(rows: pd.DataFrame, size: float | None) -> tuple[float, float] | None:
    """(size, KL) of the smallest uniform row that is not smaller than `size` by more than `SAME_SIZE`.

    Never a clearly smaller one, so that a change against it is not flattered.
    """
    column = quality(rows)
    measure = size_column(rows)
    known = uniform(rows).dropna(subset=[measure, column])
    hits = known[known[measure] >= (np.inf if size is None else size) - SAME_SIZE]
    return None if hits.empty else (float(hits.iloc[-1][measure]), float(hits.iloc[-1][column]))


def change(ours: float | None, theirs: float | None) -> float | None:
    """Change from theirs to ours in per cent (negative is better for a KL)."""
    return None if ours is None or not theirs else 100 * (ours / theirs - 1)


def largest_gap(rows: pd.DataFrame, low: float = 0.4, high: float = 0.9) -> float:
    """Length of the longest part of [low, high] of `params_ratio` without a front point."""
    sizes = front(complete(rows))["params_ratio"].dropna()
    inside = sorted(s for s in sizes if low <= s <= high)
    return float(np.diff([low, *inside, high]).max())


def fitness_gap(rows: pd.DataFrame) -> float | None:
    """Median of `kl_test / kl_fitness - 1` over the front: what the search overrated; None where not measured."""
    points = front(complete(rows)).dropna(subset=["kl_test", "kl_fitness"])
    points = points[points["kl_fitness"] > 0]
    return None if points.empty else float((points["kl_test"] / points["kl_fitness"] - 1).median())


def verdict(row: pd.Series, reference: pd.Series | None, phase: str) -> Verdict:
    """Whether a measured latency differs from the reference's: only where their intervals do not overlap."""
    low, high = number(row, f"{phase}_low"), number(row, f"{phase}_high")
    theirs = number(reference, f"{phase}_low"), number(reference, f"{phase}_high")
    if low is None or high is None or theirs[0] is None or theirs[1] is None:
        return "no interval"
    if high < theirs[0]:
        return "faster"
    return "slower" if low > theirs[1] else "not told apart"


def latency_claim(row: pd.Series, reference: pd.Series | None, phase: str) -> str:
    """E.g. `decode measured 0.58x [0.57, 0.60], faster than dense`; empty where not measured."""
    measured = number(row, f"{phase}_ratio")
    if measured is None:
        return ""
    said: dict[Verdict, str] = {
        "faster": ", faster than dense",
        "slower": ", slower than dense",
        "not told apart": ", not told apart from dense",
        "no interval": " (no interval)",
    }
    value = f"{text.ratio(measured)} {text.bounds(interval(row, phase))}".rstrip()
    return f"{phase} measured {value}{said[verdict(row, reference, phase)]}"


def headline_point(rows: pd.DataFrame) -> tuple[pd.Series, pd.Series | None] | None:
    """The front point the headline speaks of, beside the uniform row nearest to half the block parameters."""
    frame = complete(rows)
    measure = size_column(frame)
    points = front(frame).dropna(subset=[measure, quality(frame)])
    if points.empty:
        return None
    known = comparison(frame).dropna(subset=["reduction"])
    if known.empty:
        return points.loc[(points[measure] - HEADLINE).abs().idxmin()], None
    pair = known.loc[(known["uniform_ratio"] - HEADLINE).abs().idxmin()]
    ours = points[points[measure] <= pair["uniform_ratio"] + 1e-9].iloc[0]
    return ours, frame[frame["name"] == pair["uniform"]].iloc[0]


def headline(rows: pd.DataFrame) -> str:
    """One sentence on the front near half the size; it claims a latency only where the intervals bear it."""
    frame = complete(rows)
    pair = headline_point(frame)
    if pair is None:
        return "No point of the front has been scored yet."
    column, measure, (ours, theirs) = quality(frame), size_column(frame), pair
    what = "FLOPs" if measure == "flops_ratio" else "block parameters"
    label = quality_label(column)
    parts = [f"{text.ratio(number(ours, measure))} of the {what}: {label} {text.kl(ours[column])}"]
    if theirs is not None:
        same = abs(ours[measure] - theirs[measure]) < 0.005
        size = "the same size" if same else text.ratio(theirs[measure])
        parts[0] += f", against {text.kl(theirs[column])} for uniform at {size}"
    claims = [latency_claim(ours, dense(frame), phase) for phase in PHASES]
    return "; ".join([*parts, *(c for c in claims if c)]) + "."
