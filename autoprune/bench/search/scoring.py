"""Scores on *selection*, to choose, and on *test*, to report; every plan once, remembered beside the runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from autoprune.bench.search.runs import Setting
from autoprune.config import compose
from autoprune.errors import LedgerError
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.objective import Array, Fidelity, Objective, Split
from autoprune.progress import Progress
from autoprune.run import finals
from autoprune.run.choosing import picked, shared_of
from autoprune.run.parts import held_out, objectives, open_parts, search_evaluators
from autoprune.run.supernets import ladders_by_phase
from autoprune.run.targets import Target, TargetsDriver, driver_of, read_targets
from autoprune.space import Candidate
from autoprune.uniform import uniform_candidates

KL = "kl"


@dataclass(frozen=True)
class Scored:
    """A plan that a run came to: its share of the dense block parameters and its test KL, window by window."""

    key: str
    ratio: float
    selection: float
    test: Array

    @property
    def kl(self) -> float:
        """Mean test KL."""
        return float(self.test.mean())


class Scoring:
    """One model, corpus and space, and what is known of its plans."""

    def __init__(self, setting: Setting) -> None:
        self.cfg = compose(setting.overrides)
        with Progress(quiet=True) as progress:
            parts = open_parts(self.cfg, progress)
        self._corpus = parts.corpus
        self.space = parts.space(None)
        self.objectives = objectives(self.cfg, self.space, parts.evaluators)
        path = setting.folder / "scores" / FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        self._ledger = Ledger.open(path) if holds_run(path) else Ledger.create(path, parts.digests)
        self._digests = parts.digests
        self.check(self._ledger)
        evaluators = search_evaluators(parts, [Objective(KL)])
        evaluation = parts.evaluation(evaluators)
        self._scorer = finals.Scorer(lambda ladders: evaluation, self._ledger)
        self._params = self.space.cost(self.space.dense)["params"]

    def check(self, ledger: Ledger) -> None:
        """Raise LedgerError when a ledger is of another model, corpus or ladders, or of several."""
        if ladders_by_phase(ledger):
            raise LedgerError(
                f"{ledger.path.parent}: this method rebuilds its ladders; `bench search` compares plans on the same "
                "ones, and a run's own leaderboard compares it with uniform models"
            )
        stored = ledger.meta()
        for name, value in self._digests.items():
            if stored.get(name) != value:
                raise LedgerError(
                    f"{ledger.path}: its {name} is {stored.get(name)}, now it is {value}; remove it, or give "
                    "another --work"
                )

    def driver(self, overrides: Sequence[str]) -> TargetsDriver:
        """The driver of a run with these settings."""
        cfg = compose(overrides)
        targets, windows = read_targets(cfg.constraints, self.space), self._corpus.count(Split.FITNESS)
        return driver_of(shared_of(cfg, self.space, self.objectives, targets, windows))

    def best(
        self, frame: pd.DataFrame, named: Sequence[Candidate], ratio: float, limit: int
    ) -> Scored | None:
        """The plan that a run with these results hands out for a budget: of its finalists the best on *selection*.

        `named` are the finalists that the searcher chose itself.
        """
        found = self._picked(frame, named, read_targets({"params": f"{ratio:g}x"}, self.space), limit)
        return self._first(found)

    def front(self, frame: pd.DataFrame, named: Sequence[Candidate]) -> list[Scored]:
        """The front that a run with these results hands out, chosen on *selection*."""
        found = self._picked(frame, named, read_targets({}, self.space), int(self.cfg.finalists))
        selected = self._scorer.score(found, self._windows(Split.SELECTION), _silent)
        points = int(self.cfg.front_points)
        return self._scored(finals.front_of(found, selected, self.objectives, points))

    def uniform(self, ratio: float) -> Scored | None:
        """The uniform baseline: of its divisions the best on *selection*."""
        return self._first([finals.finalist(self.space, c) for c in uniform_candidates(self.space, ratio)])

    def _picked(
        self, frame: pd.DataFrame, named: Sequence[Candidate], targets: Sequence[Target], limit: int
    ) -> list[finals.Finalist]:
        dense = self.space.decode(self.space.dense)
        found = picked(frame, named, self.space, dense, self.objectives, targets, limit)
        return [f for f in (finals.finalist(self.space, c) for c in found) if f.plan != dense]

    def _first(self, found: Sequence[finals.Finalist]) -> Scored | None:
        selected = self._scorer.score(found, self._windows(Split.SELECTION), _silent)
        best = finals.best_of(found, selected, KL)
        return None if best is None else self._scored([best])[0]

    def _scored(self, finalists: Sequence[finals.Finalist]) -> list[Scored]:
        test, selection = self._windows(Split.TEST), self._windows(Split.SELECTION)
        self._scorer.score(finalists, test, _silent)
        values, means = self._ledger.final_values(test), self._ledger.finals(selection)
        found = []
        for finalist in finalists:
            key, ratio = finalist.name, finalist.costs["params"] / self._params
            if key in values:
                found.append(Scored(key, ratio, means[key][KL], np.array(values[key][KL])))
        return found

    def _windows(self, split: Split) -> Fidelity:
        return held_out(self.cfg, self._corpus, split)


def _silent(done: int, of: int) -> None:
    """Nobody watches."""


@lru_cache(maxsize=1)
def scoring_of(setting: Setting) -> Scoring:
    """One for all runs of a setting in this process."""
    return Scoring(setting)
