"""The pictures of a comparison: quality against tokens, and fronts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from autoprune.bench.search.methods import Method
from autoprune.bench.search.tables import Compared
from autoprune.objective import Array
from autoprune.report.canvas import PAPER, SERIES, UNIFORM, canvas, label, log_scale, titles

MARKERS = "oDs^vPX*"
MILLION = 1e6


def curves(found: Compared) -> Figure:
    """Test KL against tokens, a panel a target: mean over seeds, and the range of seeds."""
    figure, axes = canvas(5.6 * len(found.targets), 4.4, columns=len(found.targets))
    for axis, target in zip(axes, found.targets, strict=True):
        titles(
            axis, "tokens (million, log scale)", f"test KL at {target:g}x of the block parameters (log scale)"
        )
        drawn = [found.curve(m.name, target) for m in found.methods]
        base = found.uniform[target].kl
        log_scale(axis, [base, *(float(v.mean()) for curve in drawn for v in curve.values())])
        axis.axhline(base, color=UNIFORM, linewidth=1.2, linestyle="--", zorder=2)
        for number, (method, curve) in enumerate(zip(found.methods, drawn, strict=True)):
            if curve:
                _curve(axis, method.name, curve, number)
        _millions(axis, found.budgets)
        label(axis, "uniform", (axis.get_xlim()[0], base), (6, 5), UNIFORM, halo=True)
        axis.legend(frameon=False, fontsize=8.5, labelcolor="linecolor")
    return figure


def _curve(axis: Axes, name: str, curve: dict[int, Array], number: int) -> None:
    tokens = np.array(sorted(curve)) / MILLION
    values = [curve[t] for t in sorted(curve)]
    color = SERIES[number % len(SERIES)]
    low, high = [v.min() for v in values], [v.max() for v in values]
    axis.fill_between(tokens, low, high, color=color, alpha=0.13, linewidth=0, zorder=1)
    _line(axis, tokens, np.array([v.mean() for v in values]), name, number)


def _line(axis: Axes, across: Array, up: Array, name: str, number: int) -> None:
    """Colours first, then other strokes of the same colours."""
    axis.plot(
        across,
        up,
        color=SERIES[number % len(SERIES)],
        linestyle=("-", "--", ":")[number // len(SERIES) % 3],
        marker=MARKERS[number % len(MARKERS)],
        markersize=5,
        linewidth=1.5,
        markeredgecolor=PAPER,
        markeredgewidth=0.6,
        label=name,
        zorder=4,
    )


def _millions(axis: Axes, budgets: Sequence[int]) -> None:
    axis.set_xscale("log")
    axis.set_xticks([b / MILLION for b in budgets], [f"{b / MILLION:g}" for b in budgets])
    axis.minorticks_off()


def fronts(found: Compared, methods: Sequence[Method], tokens: int) -> Figure:
    """Test KL against the ratio of block parameters: the fronts of seed 0."""
    figure, (axis,) = canvas(7.0, 4.6)
    titles(
        axis,
        "block parameters, ratio to dense",
        f"test KL of fronts from {tokens:,} tokens, seed 0 (log scale)",
    )
    drawn = []
    for number, method in enumerate(methods):
        all_seeds = found.fronts(method.name, tokens)
        if all_seeds:
            points = sorted((p.ratio, p.kl) for p in all_seeds[0] if p.ratio < 1.0)
            drawn += [kl for _, kl in points]
            across, up = np.array(points).T
            _line(axis, across, up, method.name, number)
    if drawn:
        log_scale(axis, drawn)
        axis.legend(frameon=False, fontsize=9, labelcolor="linecolor")
    return figure
