"""Pictures of a run; each shows the dense model and the uniform baseline."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoprune.objective import non_dominated
from autoprune.report import text
from autoprune.report.canvas import (
    CLOUD,
    FRONT,
    GRID,
    INK,
    MUTED,
    PAPER,
    UNIFORM,
    canvas,
    dense_mark,
    empty,
    label,
    log_scale,
    save_png,
    svg,
    titles,
)
from autoprune.report.kept import kept
from autoprune.report.rows import PHASES, complete, dense, interval, number, quality, quality_label, uniform
from autoprune.report.rows import front as front_rows
from autoprune.report.summary import change, headline_point

__all__ = ["front", "kept", "latency_front", "predicted_against_measured", "save_png", "svg"]

VECTOR_LIMIT = 1500  # a larger cloud is drawn as an embedded bitmap


def _known(rows: pd.DataFrame, across: str, up: str) -> pd.DataFrame:
    """The rows that can be drawn on a log axis."""
    return rows[rows[across].notna() & (rows[up] > 0)]


def _line(axis: Axes, across: pd.Series, up: pd.Series, color: str, marker: str) -> None:
    axis.plot(
        across,
        up,
        color=color,
        marker=marker,
        markersize=6,
        linewidth=1.6,
        markeredgecolor=PAPER,
        markeredgewidth=0.8,
        zorder=4,
    )


def _joined(axis: Axes, rows: pd.DataFrame, across: str, column: str) -> None:
    """The front: joined where nothing in this picture dominates it; a front may have been searched for another cost."""
    best = non_dominated(rows[[across, column]].to_numpy(float).tolist())
    rest = np.setdiff1d(np.arange(len(rows)), best)
    _line(axis, rows[across].iloc[best], rows[column].iloc[best], FRONT, "o")
    axis.plot(rows[across].iloc[rest], rows[column].iloc[rest], color=FRONT, marker="o", markersize=4.5,
              linestyle="none", alpha=0.6, zorder=3)  # fmt: skip


def _names(axis: Axes, ours: pd.DataFrame, theirs: pd.DataFrame, across: str, column: str) -> None:
    """The two lines named where there is room: uniform above, the front below."""
    if len(theirs):
        row = theirs.iloc[len(theirs) // 2]
        label(axis, "uniform", (row[across], row[column]), (8, 6), UNIFORM, halo=True)
    if len(ours):
        row = ours.iloc[round(len(ours) * 0.6)] if len(ours) > 1 else ours.iloc[0]
        label(axis, "front", (row[across], row[column]), (-8, -6), FRONT, halo=True)


def _cloud(axis: Axes, evaluated: pd.DataFrame) -> None:
    """Every evaluated candidate, faint."""
    if evaluated.empty:
        return
    points = evaluated[evaluated["params_ratio"].notna() & evaluated["kl"].between(0, np.inf, "neither")]
    rasterized = len(points) > VECTOR_LIMIT
    axis.scatter(
        points["params_ratio"],
        points["kl"],
        s=7,
        color=CLOUD,
        alpha=0.45,
        linewidths=0,
        rasterized=rasterized,
    )
    words = f"dots: fitness KL of {text.count(len(points))} candidates"
    axis.set_title(words, color=MUTED, fontsize=9.5, loc="right", pad=9)


def _gain(axis: Axes, rows: pd.DataFrame, column: str) -> None:
    """What the front saves against uniform near half the size: the headline, in the picture."""
    pair = headline_point(rows)
    if pair is None or pair[1] is None:
        return
    ours, theirs = pair[0], pair[1]
    delta = change(number(ours, column), number(theirs, column))
    if delta is None or delta > -5:  # no room for an arrow, or nothing to show
        return
    x, low, high = theirs["params_ratio"], ours[column], theirs[column]
    axis.annotate(
        "",
        (x, low),
        (x, high),
        arrowprops={"arrowstyle": "->", "color": INK, "shrinkA": 5, "shrinkB": 5},
        zorder=5,
    )
    label(axis, text.percent(delta), (x, high), (0, 7), halo=True)  # beside the arrow both lines are near


def front(rows: pd.DataFrame, evaluated: pd.DataFrame) -> Figure:
    """KL against the ratio of block parameters: front, uniform, dense, and all evaluated candidates behind."""
    frame = complete(rows)
    column = quality(frame)
    figure, (axis,) = canvas(7.6, 4.7)
    ours = _known(front_rows(frame), "params_ratio", column)
    theirs = _known(uniform(frame), "params_ratio", column)
    if ours.empty and theirs.empty:
        empty(axis, "No model has been scored yet.")
        return figure
    titles(
        axis, "block parameters, ratio to dense", f"{quality_label(column)} to the dense model (log scale)"
    )
    floor = log_scale(axis, [*ours[column], *theirs[column]])
    _cloud(axis, evaluated)
    _line(axis, theirs["params_ratio"], theirs[column], UNIFORM, "s")
    _joined(axis, ours, "params_ratio", column)
    _names(axis, ours, theirs, "params_ratio", column)
    _gain(axis, frame, column)
    dense_mark(axis, 1.0, floor, number(dense(frame), column), quality_label(column))
    left = min([*ours["params_ratio"], *theirs["params_ratio"]])
    axis.set_xlim(left - 0.04, 1.03)
    return figure


def _whiskers(axis: Axes, rows: pd.DataFrame, phase: str, column: str, color: str, marker: str) -> None:
    """Measured ratios with their intervals."""
    for _, row in rows.iterrows():
        ends = interval(row, phase)
        if ends:
            axis.plot(ends, [row[column]] * 2, color=color, linewidth=1.4, solid_capstyle="butt", zorder=3)
    across, up = rows[f"{phase}_ratio"], rows[column]
    axis.plot(
        across,
        up,
        color=color,
        marker=marker,
        markersize=5.5,
        linestyle="none",
        markeredgecolor=PAPER,
        markeredgewidth=0.7,
        zorder=4,
    )


def latency_front(rows: pd.DataFrame, metric: str) -> Figure:
    """KL against the measured ratio of `metric` (prefill or decode), with intervals; the band is dense's own."""
    frame = complete(rows)
    column, across = quality(frame), f"{metric}_ratio"
    figure, (axis,) = canvas(4.7, 3.9)
    ours = _known(front_rows(frame), across, column)
    theirs = _known(uniform(frame), across, column)
    if ours.empty and theirs.empty:
        empty(axis, f"{metric} latency was not measured.")
        return figure
    titles(axis, f"measured {metric} latency, ratio to dense", f"{quality_label(column)} (log scale)")
    floor = log_scale(axis, [*ours[column], *theirs[column]])
    band = interval(dense(frame), metric)
    if band:
        axis.axvspan(*band, color=GRID, alpha=0.7, linewidth=0, zorder=1)
    _whiskers(axis, theirs, metric, column, UNIFORM, "s")
    _whiskers(axis, ours, metric, column, FRONT, "o")
    _names(axis, ours, theirs, across, column)
    dense_mark(axis, 1.0, floor, number(dense(frame), column), quality_label(column))
    return figure


def predicted_against_measured(rows: pd.DataFrame) -> Figure:
    """Predicted against measured milliseconds of both phases; on the diagonal the prediction is right."""
    frame = complete(rows)
    figure, axes = canvas(7.6, 3.9, columns=2)
    for axis, phase in zip(axes, PHASES, strict=True):
        _diagonal(axis, frame, phase)
    return figure


def _diagonal(axis: Axes, frame: pd.DataFrame, phase: str) -> None:
    predicted, measured = f"{phase}_pred_ms", f"{phase}_ms"
    known = frame.dropna(subset=[predicted, measured])
    if known.empty:
        empty(axis, f"{phase} latency was not\npredicted and measured.")
        return
    low, high = (
        known[[predicted, measured]].min().min() * 0.94,
        known[[predicted, measured]].max().max() * 1.06,
    )
    axis.plot([low, high], [low, high], color=MUTED, linewidth=0.9, zorder=2)
    first = dense(known)
    groups = [("uniform", uniform(known), UNIFORM, "s"), ("front", front_rows(known), FRONT, "o")]
    for _, part, color, marker in groups:
        axis.plot(part[predicted], part[measured], color=color, marker=marker, markersize=5.5, linestyle="none",
                  markeredgecolor=PAPER, markeredgewidth=0.7, zorder=4)  # fmt: skip
    if first is not None:
        axis.plot([first[predicted]], [first[measured]], color=INK, marker="D", markersize=6.5, zorder=5)
        label(axis, "dense", (first[predicted], first[measured]), (-9, 3))
    for line, (name, part, color, _) in enumerate(groups):
        if len(part):
            axis.annotate(
                name, (0.04, 0.95 - 0.08 * line), xycoords="axes fraction", color=color, fontsize=10, va="top"
            )
    error = (known[predicted] / known[measured] - 1).abs()[known["name"] != "dense"].mean()
    if error == error:
        words = f"mean error {100 * error:.1f} %"
        axis.annotate(words, (0.97, 0.04), xycoords="axes fraction", color=MUTED, fontsize=9.5, ha="right")
    axis.set_xlim(low, high)
    axis.set_ylim(low, high)
    axis.set_aspect("equal")
    titles(axis, f"predicted {phase}, ms", f"measured {phase}, ms")
