"""The fronts of all runs of a group in one picture, with the dense model and the uniform ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoprune.objective import non_dominated
from autoprune.report.board.analysis import QUALITY
from autoprune.report.board.table import baselines, fronts
from autoprune.report.canvas import (
    INK,
    MUTED,
    PAPER,
    SERIES,
    UNIFORM,
    canvas,
    dense_mark,
    empty,
    label,
    log_scale,
    titles,
)
from autoprune.report.rows import dense, number, quality_label

COSTS = {
    "params_ratio": "block parameters",
    "params_total_ratio": "all parameters",
    "flops_ratio": "FLOPs",
    "kv_ratio": "KV cache",
    "bytes_ratio": "bytes",
    "prefill_ratio": "measured prefill latency",
    "decode_ratio": "measured decode latency",
}
MARKERS = ("o", "D", "^", "v", "P", "X", "<")  # not as many as colours: the two together repeat late


def overlay(rows: pd.DataFrame, cost: str, families: Mapping[str, str]) -> Figure:
    """Test KL against `cost`: a line for every run, a colour for every family (`families`: run to label)."""
    figure, (axis,) = canvas(8.6, 5.2)
    known = rows[rows[cost].notna() & (rows[QUALITY] > 0)]
    ours, theirs = fronts(known), baselines(known)
    theirs = theirs[theirs["name"].astype(str).str.startswith("uniform@")]
    if ours.empty and theirs.empty:
        empty(axis, f"No model has a test KL and {COSTS[cost]}.")
        return figure
    titles(axis, f"{COSTS[cost]}, ratio to dense", "test KL to the dense model (log scale)")
    floor = log_scale(axis, [*ours[QUALITY], *theirs[QUALITY]])
    _uniform(axis, theirs, cost)
    _fronts(axis, ours, cost, families)
    first = dense(rows)
    dense_mark(axis, 1.0, floor, number(first, QUALITY), quality_label(QUALITY))
    axis.set_xlim(min([*ours[cost], *theirs[cost]]) - 0.04, max(1.03, *ours[cost], *theirs[cost]))
    return figure


def _uniform(axis: Axes, rows: pd.DataFrame, cost: str) -> None:
    """A line for each kind of ladders: uniform models of better ladders are better."""
    kinds = list(rows.groupby("ladders", sort=False))
    for kind, part in kinds:
        line = part.groupby(cost, as_index=False)[QUALITY].min().sort_values(cost)
        axis.plot(line[cost], line[QUALITY], color=UNIFORM, marker="s", markersize=5.5, linewidth=1.5, zorder=3,
                  markeredgecolor=PAPER, markeredgewidth=0.7)  # fmt: skip
        middle = line.iloc[len(line) // 2]
        words = "uniform" if len(kinds) == 1 else f"uniform, {kind} ladders"
        label(axis, words, (middle[cost], middle[QUALITY]), (8, 6), UNIFORM)


def _fronts(axis: Axes, rows: pd.DataFrame, cost: str, families: Mapping[str, str]) -> None:
    """Joined are the points that are not dominated within their run; dominated ones stand alone."""
    names = list(dict.fromkeys(families[str(run)] for run in rows["run"]))
    shown: set[str] = set()
    for run, part in rows.groupby("run", sort=False):
        family = families[str(run)]
        place = names.index(family)
        style: dict[str, Any] = {
            "color": SERIES[place % len(SERIES)],
            "marker": MARKERS[place % len(MARKERS)],
            "markersize": 5,
        }
        edges: dict[str, Any] = {"markeredgecolor": PAPER, "markeredgewidth": 0.6}
        points = part[[cost, QUALITY]].to_numpy(float)
        joined = points[non_dominated(points.tolist())]
        first = None if family in shown else family
        axis.plot(*joined.T, linewidth=1.3, label=first, zorder=4, **style, **edges)
        axis.plot(*points.T, linestyle="none", alpha=0.35, zorder=3, **style, **edges)
        shown.add(family)
    legend = axis.legend(loc="lower left", frameon=False, fontsize=9.5, labelcolor=INK, handlelength=1.6)
    legend.set_zorder(7)
    for words in legend.get_texts():
        words.set_parse_math(False)
    if rows["run"].nunique() > len(names):
        axis.set_title("one line for every seed", color=MUTED, fontsize=9.5, loc="right", pad=9)
