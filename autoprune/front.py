"""The result of a run: its front as a table, picking and exporting points."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.space import Plan

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Point:
    """One model of a front: its key, its plan and all its figures."""

    key: str
    plan: Plan
    figures: dict[str, float]


@dataclass(frozen=True)
class Front:
    """A finished run's folder, read on demand."""

    folder: Path

    def frame(self) -> pd.DataFrame:
        """The leaderboard: front, uniform and dense rows with all columns."""
        from autoprune.report import leaderboard

        return leaderboard.read(self.folder)

    def pick(
        self,
        *,
        key: str | None = None,
        params: float | str | None = None,
        prefill: float | str | None = None,
        decode: float | str | None = None,
    ) -> Point:
        """The point of lowest selection KL with at most this ratio of dense, or the one of this key.

        Exactly one argument; raises SettingError naming the smallest there is when none fits.
        """
        row = self._row(key, params, prefill, decode)
        skipped = ("key", "plan", "name", "method")
        figures = {c: float(v) for c, v in row.items() if c not in skipped and v == v and v is not None}
        return Point(str(row["key"]), Plan.from_json(str(row["plan"])), figures)

    def export(
        self,
        to: str | Path,
        *,
        key: str | None = None,
        params: float | str | None = None,
        prefill: float | str | None = None,
        decode: float | str | None = None,
    ) -> Path:
        """Write such a point as a checkpoint and prove that it reloads equal."""
        from autoprune.api import export

        return export(self.folder, to=to, key=key, params=params, prefill=prefill, decode=decode)

    def _row(
        self,
        key: str | None,
        params: float | str | None,
        prefill: float | str | None,
        decode: float | str | None,
    ) -> pd.Series:
        from autoprune.errors import SettingError
        from autoprune.run.export import choose

        bounds = {"params": params, "prefill": prefill, "decode": decode}
        if sum(v is not None for v in (key, *bounds.values())) != 1:
            raise SettingError("name exactly one of key, params, prefill, decode")
        return choose(self.frame(), key, bounds)
