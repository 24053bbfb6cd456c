"""The per-block map of what chosen models kept."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from autoprune.errors import SpaceError
from autoprune.report import text
from autoprune.report.canvas import FRONT, GRID, INK, KEPT, MUTED, ON_DEEP, ON_PALE, UNIFORM, canvas, empty
from autoprune.report.rows import complete, dense, front, spread, uniform, word
from autoprune.report.rows import number as measured
from autoprune.space import Plan

CHOSEN = 6
NUMBERED = 24  # with more blocks than this the cells are too narrow for numbers
PARTS = (("kv_groups", "KV groups kept"), ("width", "FFN width kept"))


@dataclass(frozen=True)
class Model:
    """One line of the map: its label and (KV groups, FFN width) per block, `[blocks, 2]`."""

    label: str
    color: str
    widths: NDArray[np.int64]


def _widths(row: pd.Series | None) -> NDArray[np.int64] | None:
    """What a row's plan keeps; None without a plan, or when it is not one of KV groups and FFN widths."""
    plan = word(row, "plan")
    try:
        return np.array(Plan.from_json(plan).widths(), dtype=np.int64) if plan else None
    except SpaceError:
        return None


def _models(frame: pd.DataFrame) -> list[Model]:
    """Dense, front points evenly spread, uniform rows."""
    models = []
    first = dense(frame)
    chosen = [] if first is None else [(first, "dense", INK)]
    for _, row in spread(front(frame), CHOSEN).iterrows():
        chosen.append((row, f"{text.ratio(measured(row, 'params_ratio'))}  {word(row, 'key')}", FRONT))
    for _, row in spread(uniform(frame), CHOSEN).iterrows():
        chosen.append((row, f"{text.ratio(measured(row, 'params_ratio'))}  {word(row, 'name')}", UNIFORM))
    for row, words, color in chosen:
        widths = _widths(row)
        if widths is not None:
            models.append(Model(words, color, widths))
    return models


def kept(rows: pd.DataFrame, shape_options: Mapping[str, Sequence[int]] | None = None) -> Figure:
    """KV groups and FFN width per block, shaded by their fraction of dense; a removed sublayer is an empty cell.

    `shape_options` maps `kv_groups` and `width` to their options, the largest being dense; without it the dense
    row's plan says what is full, without that the most that any model keeps.
    """
    models = _models(complete(rows))
    blocks = {len(model.widths) for model in models}
    if len(blocks) != 1:
        figure, (axis,) = canvas(7.6, 1.4)
        empty(axis, "No plans of KV groups and FFN widths to draw.")
        return figure
    full = np.max([model.widths for model in models], axis=0)
    if shape_options is not None:
        full = np.tile([max(shape_options[name]) for name, _ in PARTS], (blocks.pop(), 1))
    figure, axes = canvas(7.6, 1.3 + 0.56 * len(models), rows=2)
    for part, axis in enumerate(axes):
        _map(axis, models, full[:, part], part)
    return figure


def _lines(models: list[Model]) -> list[float]:
    """Where each line stands, with a gap between dense, front and uniform."""
    places, at = [], 0.0
    for index, model in enumerate(models):
        at += 0.35 if index and model.color != models[index - 1].color else 0.0
        places.append(at + index)
    return places


def _map(axis: Axes, models: list[Model], full: NDArray[np.int64], part: int) -> None:
    places = _lines(models)
    for model, line in zip(models, places, strict=True):
        for block, value in enumerate(model.widths[:, part]):
            _cell(axis, block, line, int(value), int(full[block]), len(full) <= NUMBERED)
    axis.set_xlim(-0.5, len(full) - 0.5)
    axis.set_ylim(places[-1] + 0.5, -0.5)
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)
    axis.set_title(PARTS[part][1], loc="left", fontsize=10, color=INK, pad=7)
    step = max(1, -(-len(full) // 24))
    axis.set_xticks(range(0, len(full), step))
    if part == 1:
        axis.set_xlabel("block", color=MUTED, fontsize=9.5)
    axis.set_yticks(places, [m.label for m in models], fontsize=9, parse_math=False)
    for tick, model in zip(axis.get_yticklabels(), models, strict=True):
        tick.set_color(model.color)


def _cell(axis: Axes, block: int, line: float, value: int, full: int, numbered: bool) -> None:
    """One value: stronger the more is kept, empty with a zero where the sublayer is gone."""
    step = min(len(KEPT), math.ceil(len(KEPT) * value / full)) if value and full else 0
    fill = KEPT[step - 1] if step else "none"
    patch = Rectangle((block - 0.47, line - 0.44), 0.94, 0.88, facecolor=fill, edgecolor=GRID, linewidth=0.6)
    axis.add_patch(patch).set_in_layout(False)  # measuring every cell would take most of the time
    if numbered:
        color = MUTED if not step else ON_PALE if step <= len(KEPT) // 2 else ON_DEEP
        words = axis.text(block, line, str(value), color=color, fontsize=8, ha="center", va="center_baseline")
        words.set_in_layout(False)
