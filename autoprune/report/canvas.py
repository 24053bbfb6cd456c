"""How pictures look and are saved: colours that a page may restyle, labels at the data, no pyplot."""

from __future__ import annotations

import hashlib
import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from autoprune.report import text
from autoprune.report.files import replace

# Safe for all common kinds of colour blindness; a page may restyle each by its CSS variable.
INK, MUTED, GRID, PAPER = "#1b1f24", "#5c6673", "#dfe3e8", "#fffffe"
FRONT, UNIFORM, CLOUD = "#0072b2", "#c75000", "#9aa4b1"
SERIES = (FRONT, "#007f5f", "#b8428c", "#6a4fbf", "#7a5c1e", "#0b8fa3")  # fronts of several families of runs
# One hue in eight steps from little to all: lightness alone carries the value, whatever the colour vision.
KEPT = ("#dbe9f5", "#bfd8ec", "#9cc3e0", "#74a9d1", "#3a7bb2", "#27669f", "#16558c", "#0b3a6b")
ON_PALE, ON_DEEP = "#10202f", "#fffffd"
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    FRONT: "--front",
    UNIFORM: "--uniform",
    CLOUD: "--cloud",
    ON_PALE: "--on-pale",
    ON_DEEP: "--on-deep",
    **{color: f"--s{number}" for number, color in enumerate(SERIES[1:], 2)},
    **{color: f"--kept{step}" for step, color in enumerate(KEPT, 1)},
}
SPAN = 3000
PNG_DPI = 200
FONTS = "system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif"
SVG: Any = {"svg.fonttype": "none", "svg.hashsalt": "autoprune", "svg.image_inline": True}
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))


def canvas(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure (inches) with plain axes, row by row."""
    figure = Figure(figsize=(width, height), layout="constrained", facecolor=PAPER)
    grid = figure.subplots(rows, columns, squeeze=False)
    axes = [axis for line in grid for axis in line]
    for axis in axes:
        axis.set_facecolor("none")
        axis.tick_params(which="both", labelsize=9, colors=MUTED, length=0, pad=5)
        axis.grid(True, color=GRID, linewidth=0.7)
        axis.set_axisbelow(True)
        for side, spine in axis.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(MUTED)
    return figure, axes


def titles(axis: Axes, across: str, up: str) -> None:
    """The axis label below, and that of the upright axis level at the top left, where it is read first."""
    axis.set_xlabel(across, color=MUTED, fontsize=9.5, labelpad=7, parse_math=False)
    axis.set_title(up, color=MUTED, fontsize=9.5, loc="left", pad=9, parse_math=False)


def label(
    axis: Axes,
    words: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    color: str = INK,
    halo: bool = False,
) -> None:
    """A direct label at a data point, shifted by points; the side it stands on follows from the offset.

    With `halo` what lies behind it shines through faintly only.
    """
    axis.annotate(
        words,
        at,
        offset,
        textcoords="offset points",
        color=color,
        fontsize=10,
        ha="left" if offset[0] > 0 else "right" if offset[0] < 0 else "center",
        va="bottom" if offset[1] > 0 else "top" if offset[1] < 0 else "center",
        annotation_clip=False,
        parse_math=False,
        zorder=6,
        bbox={"boxstyle": "square,pad=0.12", "facecolor": PAPER, "edgecolor": "none", "alpha": 0.8}
        if halo
        else None,
    )


def dense_mark(axis: Axes, across: float, floor: float, kl: float | None, quality: str) -> None:
    """The dense model at the foot of the log axis, which has no zero."""
    axis.plot([across], [floor], marker="v", markersize=9, color=INK, clip_on=False, zorder=5)
    label(axis, f"dense: {quality} {text.kl(kl)}", (across, floor), (-11, 5), halo=True)


def log_scale(axis: Axes, values: Sequence[float]) -> float:
    """An upright log axis around the positive values, with plain numbers; returns its floor.

    At most `SPAN` between top and floor: models next to dense would leave no room for all others.
    """
    least = max(min(values), max(values) / SPAN)
    span = math.log(max(max(values) / least, 10.0))
    low, high = (
        least * math.exp(-0.16 * span),
        max(values) * math.exp(0.07 * span),
    )  # room for dense's label
    axis.set_yscale("log")
    axis.set_ylim(low, high)
    decades = high / low
    subs = (1.0, 2.0, 5.0) if decades < 1000 else (1.0,)
    axis.yaxis.set_major_locator(LogLocator(subs=subs, numticks=20))
    axis.yaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    return low


def empty(axis: Axes, words: str) -> None:
    """Say what is missing instead of drawing an empty frame."""
    axis.axis("off")
    axis.text(0.5, 0.5, words, color=MUTED, fontsize=11, ha="center", va="center", transform=axis.transAxes)


def _freeze(figure: Figure) -> None:
    """Lay out once: another layout pass would move things a little, and no two files would be alike."""
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


def save_png(figure: Figure, path: Path, title: str = "", about: str = "") -> None:
    """Write a PNG, atomically; a picture that stands alone says above what it shows and of which run."""
    _freeze(figure)
    left = min((axis.get_position().x0 for axis in figure.axes), default=0.0)
    inch = 1 / figure.get_figheight()
    style: dict[str, Any] = {"ha": "left", "va": "bottom", "parse_math": False}
    added = []
    if title:
        added.append(
            figure.text(left, 1 + 0.34 * inch, title, fontsize=13, weight="bold", color=INK, **style)
        )
    if about:
        added.append(figure.text(left, 1 + 0.1 * inch, about, fontsize=9.5, color=MUTED, **style))
    tight: dict[str, Any] = {"bbox_inches": "tight", "pad_inches": 0.12} if added else {}
    replace(Path(path), lambda temporary: figure.savefig(temporary, format="png", dpi=PNG_DPI, **tight))
    for words in added:
        words.remove()


def svg(figure: Figure) -> str:
    """Inline SVG: the same bytes every time, text as text, colours as CSS variables, nothing fetched."""
    _freeze(figure)
    buffer = io.StringIO()
    with matplotlib.rc_context(SVG):
        figure.savefig(buffer, format="svg", transparent=True, metadata=NO_METADATA)
    content = buffer.getvalue()
    content = content[content.index("<svg") :]
    content = re.sub(r' xmlns(:xlink)?="[^"]*"', "", content).replace("xlink:href", "href")
    content = re.sub(r' transform="rotate\(-0 [^"]*"', "", content)
    content = re.sub(r"font-family: [^;\"]*; ", "", content)
    content = content.replace("<svg ", f'<svg style="font-family: {FONTS}" ', 1)
    for color, variable in VARIABLES.items():
        content = content.replace(color, f"var({variable}, {color})")
    return _own_names(content)


def _own_names(content: str) -> str:
    """Ids that no other picture on the page has; those of groups, never referred to, are dropped."""
    content = re.sub(r' id="[A-Za-z.]+(?:2d)?_\d+"', "", content)
    own = f"a{hashlib.sha256(content.encode()).hexdigest()[:8]}-"
    return re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{own}", content)
