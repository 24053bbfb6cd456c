"""The board as one HTML file that needs nothing else."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup

from autoprune.report import text
from autoprune.report.board import words
from autoprune.report.board.groups import Group
from autoprune.report.board.overlay import COSTS, overlay
from autoprune.report.board.table import MARK
from autoprune.report.board.text import NOTE
from autoprune.report.canvas import svg
from autoprune.report.html import Cell, template
from autoprune.report.rows import number, word
from autoprune.runs import Seen


def render(
    groups: Sequence[Group], runs: Sequence[Seen], unread: Sequence[Seen], cost: str, at: Path, command: str
) -> str:
    """The page as text, with links to the runs' own reports relative to `at`, the page's folder."""
    links = {run.name: _link(run, at) for run in runs}
    return template("board.html.j2").render(
        groups=[_content(group, cost, links) for group in groups],
        runs=len(runs),
        unread=[[run.name, run.state, run.reason] for run in unread],
        note=NOTE.format(cost=COSTS[cost]),
        command=command,
    )


def _link(run: Seen, at: Path) -> str:
    report = run.path / "report.html"
    return quote(os.path.relpath(report, at)) if report.is_file() else ""


def _content(group: Group, cost: str, links: dict[str, str]) -> dict[str, object]:
    heads, seeds = words.seed_cells(group.seeds)
    chosen = words.columns(group.shown)
    bound = group.reference
    reference = f"{COSTS[cost]} {text.ratio(bound[0])}, test KL {text.kl(bound[1])}" if bound else ""
    return {
        "title": group.title,
        "shared": group.shared,
        "drawing": Markup(svg(overlay(group.analysed, cost, group.families))),  # noqa: S704
        "cost": COSTS[cost],
        "reference": reference,
        "seed_heads": heads,
        "seeds": seeds,
        "heads": [head for _, head, _ in chosen],
        "left": [head in words.WORDS for _, head, _ in chosen],
        "lines": [_line(row, chosen, links) for _, row in group.shown.iterrows()],
    }


def _line(
    row: pd.Series, chosen: Sequence[tuple[str, str, words.Show]], links: dict[str, str]
) -> dict[str, object]:
    kind = word(row, "name").partition("@")[0]
    cells = [Cell(show(row), _value(row, column)) for column, _, show in chosen]
    return {"kind": kind, "marked": bool(row[MARK]), "cells": cells, "link": links.get(word(row, "run"), "")}


def _value(row: pd.Series, column: str) -> float | str | None:
    """What a cell is sorted by."""
    if isinstance(row[column], str):
        return word(row, column)
    return number(row, column)
