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
from autoprune.space import Kind, Plan

CHOSEN = 6
NUMBERED = 24  # with more blocks than this the cells are too narrow for numbers
PARTS: tuple[tuple[Kind, str, str], ...] = (
    ("attention", "kv_groups", "KV groups kept"),
    ("ffn", "width", "FFN width kept"),
    ("attention", "group_heads", "Query heads a KV group"),
    ("attention", "kv_budget", "Tokens in the KV cache"),
    ("attention", "kv_full_groups", "KV groups that keep all tokens"),
    ("attention", "kv_channels", "Channels of old keys"),
    ("attention", "keep_prefill", "Prompt tokens handed on, %"),
    ("attention", "keep_prompt", "Prompt tokens kept for good, %"),
    ("ffn", "experts", "Experts kept"),
    ("ffn", "experts_per_token", "Experts per token"),
)
ALWAYS = 2  # parts that every plan has; the others are drawn where all plans have them


@dataclass(frozen=True)
class Model:
    """One line of the map: its label and what it keeps of each part in each block, `[blocks, parts]`; -1: not said."""

    label: str
    color: str
    widths: NDArray[np.int64]


def _widths(row: pd.Series | None) -> NDArray[np.int64] | None:
    """What a row's plan keeps; None without a plan, or when it is not one of KV groups and FFN widths."""
    try:
        plan = Plan.from_json(word(row, "plan"))
        plan.widths()
    except SpaceError:
        return None
    blocks = range(plan.blocks)
    return np.array(
        [[int(plan.at(b, kind).get(name, -1)) for kind, name, _ in PARTS] for b in blocks], dtype=np.int64
    )


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
    """KV groups, FFN width and what else plans set per block, shaded by its fraction of dense; what is gone is empty.

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
        most = [max(shape_options.get(name, (0,))) for _, name, _ in PARTS]
        full = np.tile(most, (blocks.pop(), 1))
    drawn = [p for p in range(len(PARTS)) if p < ALWAYS or all((m.widths[:, p] >= 0).all() for m in models)]
    figure, axes = canvas(7.6, 0.1 + (0.6 + 0.28 * len(models)) * len(drawn), rows=len(drawn))
    for part, axis in zip(drawn, axes, strict=True):
        _map(axis, models, full[:, part], part, last=part == drawn[-1])
    return figure


def _lines(models: list[Model]) -> list[float]:
    """Where each line stands, with a gap between dense, front and uniform."""
    places, at = [], 0.0
    for index, model in enumerate(models):
        at += 0.35 if index and model.color != models[index - 1].color else 0.0
        places.append(at + index)
    return places


def _map(axis: Axes, models: list[Model], full: NDArray[np.int64], part: int, last: bool) -> None:
    places = _lines(models)
    for model, line in zip(models, places, strict=True):
        for block, value in enumerate(model.widths[:, part]):
            _cell(axis, block, line, int(value), int(full[block]), len(full) <= NUMBERED)
    axis.set_xlim(-0.5, len(full) - 0.5)
    axis.set_ylim(places[-1] + 0.5, -0.5)
    axis.grid(False)
    axis.spines["bottom"].set_visible(False)
    axis.set_title(PARTS[part][2], loc="left", fontsize=10, color=INK, pad=7)
    step = max(1, -(-len(full) // 24))
    axis.set_xticks(range(0, len(full), step))
    if last:
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
