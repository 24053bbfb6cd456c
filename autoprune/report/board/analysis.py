"""What a group of comparable rows says: who is dominated, how much each front covers, means over seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from autoprune.objective import non_dominated
from autoprune.report.board.table import MARK, fronts
from autoprune.report.hypervolume import hypervolume

QUALITY = "kl_test"
PICKED_BY = "kl_selection"  # a point is picked on selection, and reported on test


def marked(rows: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The rows with `non_dominated`: on `cost` and test KL, within each group; false where either is missing."""
    rows = rows.assign(**{MARK: False})
    for _, group in rows.dropna(subset=[cost, QUALITY]).groupby("group", sort=False):
        points = group[[cost, QUALITY]].to_numpy(float).tolist()
        best = [points[index] for index in non_dominated(points)]
        rows.loc[group.index[[point in best for point in points]], MARK] = (
            True  # the same plan in two runs, too
        )
    return rows


def reference(rows: pd.DataFrame, cost: str) -> tuple[float, float] | None:
    """The point that all fronts of a group are measured against: dense's cost, the worst uniform's test KL."""
    known = rows.dropna(subset=[cost, QUALITY])
    uniform = known[known["name"].astype(str).str.startswith("uniform@")]
    worst = (uniform if len(uniform) else known)[QUALITY].max()
    return (1.0, float(worst)) if worst > 0 else None


def coverage(rows: pd.DataFrame, cost: str) -> dict[str, float]:
    """Hypervolume of each run's front, as a share of the box between zero and the group's reference."""
    bound = reference(rows, cost)
    if bound is None:
        return {}
    found = {}
    for run, group in fronts(rows).dropna(subset=[cost, QUALITY]).groupby("run", sort=False):
        scaled = [[x / bound[0], y / bound[1]] for x, y in group[[cost, QUALITY]].to_numpy(float)]
        found[str(run)] = hypervolume(scaled, (1.0, 1.0))
    return found


def ratios(rows: pd.DataFrame) -> list[float]:
    """The sizes that uniform models were asked for, largest first."""
    names = rows["name"].astype(str)
    asked = {float(n.partition("@")[2]) for n in names if n.startswith("uniform@")}
    return sorted(asked, reverse=True)


@dataclass(frozen=True)
class Spread:
    """A figure over seeds: how many there are, their mean, their standard deviation (None for one)."""

    count: int
    mean: float
    deviation: float | None

    @staticmethod
    def of(values: list[float]) -> Spread:
        """Of at least one value."""
        series = pd.Series(values)
        return Spread(
            len(values), float(series.mean()), float(series.std(ddof=1)) if len(values) > 1 else None
        )


@dataclass(frozen=True)
class Line:
    """A family of runs over its seeds: hypervolume, and test KL by the ratio that a model had to meet."""

    label: str
    seeds: int
    hypervolume: Spread | None
    at: Mapping[float, Spread]


def over_seeds(rows: pd.DataFrame, cost: str, families: Mapping[str, str]) -> list[Line]:
    """One line a family (`families` maps a run to its label), the uniform models first.

    Per ratio each run's point of lowest selection KL that costs no more. A ratio at which a run offers nothing that it
    does not offer at the next smaller one is left out: there it was not searched.
    """
    volumes, asked = coverage(rows, cost), ratios(rows)
    uniform = rows[rows["name"].astype(str).str.startswith("uniform@")]
    groups = {"uniform": {str(r): part for r, part in uniform.groupby("run")}}
    for run, part in fronts(rows).groupby("run", sort=False):
        groups.setdefault(families[str(run)], {})[str(run)] = part
    lines = []
    for label, runs in groups.items():
        picked = [_picks(part, cost, asked) for part in runs.values()]
        at = {r: Spread.of(v) for r in asked if (v := [p[r] for p in picked if r in p])}
        if label == "uniform":  # it has no seeds: runs differ in how many windows it was picked on, if at all
            at = {ratio: Spread(1, value.mean, None) for ratio, value in at.items()}
        known = [volumes[run] for run in runs if run in volumes and label != "uniform"]
        if runs:
            lines.append(Line(label, len(runs), Spread.of(known) if known else None, at))
    return lines


def _picks(points: pd.DataFrame, cost: str, asked: list[float]) -> dict[float, float]:
    """Test KL of the point picked at each ratio."""
    found: dict[float, float] = {}
    last = None
    for ratio in sorted(asked):
        within = points[points[cost] <= ratio + 1e-9].dropna(subset=[QUALITY])
        by = PICKED_BY if within[PICKED_BY].notna().any() else QUALITY
        best = within.sort_values(by, kind="stable").head(1)
        if len(best) and best.index[0] != last:
            last = best.index[0]
            found[ratio] = float(best[QUALITY].iloc[0])
    return found
