"""A board cut into groups of comparable rows, each with all that is said of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from autoprune.errors import SettingError, nearest
from autoprune.report.board import analysis, select, words
from autoprune.report.board.families import family, labels
from autoprune.report.board.overlay import COSTS
from autoprune.report.board.table import Board, baselines, comparable, fronts, is_baseline, title


@dataclass(frozen=True)
class Wanted:
    """What is shown: conditions on rows, the column to sort by, the cost that fronts are compared on."""

    where: tuple[str, ...] = ()
    by: str | None = None  # None: by falling cost
    reverse: bool = False
    cost: str = "params_ratio"


@dataclass(frozen=True)
class Group:
    """Rows that may be compared: those shown, those analysed, means over seeds, and what all of them share."""

    title: str
    shown: pd.DataFrame  # baselines once
    analysed: pd.DataFrame
    seeds: Sequence[analysis.Line]
    families: Mapping[str, str]  # run to label
    volumes: Mapping[str, float]
    reference: tuple[float, float] | None
    shared: str


def prepare(board: Board, wanted: Wanted) -> tuple[pd.DataFrame, list[Group]]:
    """All rows that meet the conditions, marked and in order, and the same by group.

    Baselines stay in the comparison whatever the conditions on searched rows. Raises SettingError for unknown columns.
    """
    if wanted.cost not in COSTS:
        raise SettingError(f"--cost {wanted.cost} is no ratio to dense" + nearest(wanted.cost, COSTS))
    rows = board.rows
    by = None if wanted.by is None else select.known(rows, wanted.by, "--by")
    met = select.met(rows, wanted.where)
    base = is_baseline(rows)
    if not (met & ~base).any():
        raise SettingError(f"--where {' and '.join(map(repr, wanted.where))}: no searched row meets it")
    analysed = analysis.marked(rows[met | base], wanted.cost)
    groups = [_group(board, part, met, wanted, by) for _, part in analysed.groupby("group", sort=False)]
    volumes = {run: value for g in groups for run, value in g.volumes.items()}
    shown = analysed[met[analysed.index]]
    shown = shown.assign(hypervolume=fronts(shown)["run"].map(volumes).reindex(shown.index))
    return _ordered(shown, by, wanted).drop(columns="group"), [g for g in groups if len(g.shown)]


def _ordered(rows: pd.DataFrame, by: str | None, wanted: Wanted) -> pd.DataFrame:
    if by is None:
        return select.ordered(rows, wanted.cost, not wanted.reverse)
    return select.ordered(rows, by, wanted.reverse)


def _group(board: Board, rows: pd.DataFrame, met: pd.Series, wanted: Wanted, by: str | None) -> Group:
    here = [run for run in board.runs if comparable(run) == rows["group"].iloc[0]]
    named = labels(here)
    families = {run.name: named[family(run)] for run in here}
    shown = rows[met[rows.index]]
    once = pd.concat([baselines(shown), shown[~is_baseline(shown)]]).sort_index()
    return Group(
        title=title(here[0].settings),
        shown=_ordered(once, by, wanted),
        analysed=rows,
        seeds=analysis.over_seeds(rows, wanted.cost, families),
        families=families,
        volumes=analysis.coverage(rows, wanted.cost),
        reference=analysis.reference(rows, wanted.cost),
        shared=_shared(shown[~is_baseline(shown)]),
    )


def _shared(rows: pd.DataFrame) -> str:
    """What all rows of a group have in common, which their table then leaves out."""
    same = [c for c in words.CONSTANT if rows[c].nunique() == 1 and str(rows[c].iloc[0])]
    return ", ".join(f"{c} {rows[c].iloc[0]}" for c in same)
