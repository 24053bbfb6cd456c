"""The runs of a comparison: each is a run folder; finished ones are read, interrupted ones go on."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from autoprune.bench.search.methods import Method
from autoprune.bench.work import work_folder
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.progress import Progress
from autoprune.run.finals import chosen
from autoprune.run.targets import PHASE
from autoprune.space import Candidate

STITCHED = (0.9, 0.775, 0.65, 0.525, 0.4)  # of a method that works at one budget: its front
QUIET = ("latency.mode=off", "quiet=true")


@dataclass(frozen=True)
class Setting:
    """What all runs of a comparison share: model, data, space, further settings, and where they are kept."""

    model: str
    data: str
    space: str
    settings: tuple[str, ...]
    work: str

    @cached_property
    def overrides(self) -> list[str]:
        """As words of a command line."""
        return [f"model={self.model}", f"data={self.data}", f"space=[{self.space}]", *QUIET, *self.settings]

    @property
    def name(self) -> str:
        """The model's and, unless it is the usual one, the space's."""
        model = Path(self.model).name
        return model if self.space == "structured" else f"{model}-{self.space.replace(',', '+')}"

    @property
    def folder(self) -> Path:
        """Where its runs are kept."""
        return work_folder(self.work, self.name, self.overrides)


@dataclass(frozen=True)
class Case:
    """One run: a method at a target, or without one for a whole front, with so many tokens."""

    method: Method
    target: float | None
    tokens: int
    seed: int

    def folder(self, setting: Setting) -> Path:
        """Its run folder."""
        return setting.folder / self.method.folder / self.goal / f"{self.tokens}-{self.seed}"

    @property
    def goal(self) -> str:
        """`0.6x`, or `front`."""
        return "front" if self.target is None else f"{self.target:g}x"

    def overrides(self, setting: Setting) -> list[str]:
        """Its settings as words of a command line."""
        bound = f"targets={list(STITCHED)}" if self.target is None else f"constraints={{params: {self.goal}}}"
        return [
            *setting.overrides,
            f"search={self.method.search}",
            *self.method.settings,
            bound,
            *(f"tokens={self.tokens}", f"seed={self.seed}", f"out={self.folder(setting)}"),
        ]


@dataclass(frozen=True)
class Searched:
    """What a finished search left: its rows in order, and what it took."""

    frame: pd.DataFrame
    named: tuple[Candidate, ...]  # finalists that its searchers named
    wall: float  # seconds, ask and tell included
    thread: float  # processor seconds of evaluating
    block_runs: float

    def at(self, tokens: int) -> pd.DataFrame:
        """The rows of a run with so many tokens, where a shorter run is the beginning of this one.

        As the study cuts: the longest beginning that the tokens pay for, and no batch after they are spent.
        """
        groups = [self.frame["phase"], self.frame["batch"]]
        spent = self.frame["tokens"].cumsum()
        before = (spent - self.frame["tokens"]).groupby(groups).transform("first")
        fits = (spent <= tokens) & (before < tokens)
        return self.frame[fits.astype(int).cummin() == 1]


def searched(setting: Setting, case: Case) -> Searched:
    """Search, or go on searching, or read what was searched."""
    folder = case.folder(setting)
    if not _done(folder):
        from autoprune.config import compose
        from autoprune.run.pipeline import search_only

        words = case.overrides(setting)
        with Progress(quiet=True) as progress:
            search_only(compose(words), "autoprune " + shlex.join(words), progress)
    with opened(folder) as ledger:
        sums = ledger.telemetry()
        wall = sum(e["seconds"] for e in ledger.events("wall"))
        named = tuple(chosen(ledger.events(PHASE)))
        thread, runs = sums.get("thread_seconds", 0.0), sums.get("block_runs", 0.0)
        return Searched(ledger.to_frame(), named, wall, thread, runs)


def _done(folder: Path) -> bool:
    if not holds_run(folder / FILE):
        return False
    with opened(folder) as ledger:
        return bool(ledger.events("searched"))


@contextmanager
def opened(folder: Path) -> Iterator[Ledger]:
    """A run's ledger, closed at the end."""
    ledger = Ledger.open(folder / FILE)
    try:
        yield ledger
    finally:
        ledger.close()
