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
from autoprune.ledger import FILE, Ledger, holds_run
from autoprune.progress import Progress
from autoprune.run import finals
from autoprune.run.targets import PHASE
from autoprune.space import Candidate, digest

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
        """Where its runs are kept; other settings have another."""
        return Path(self.work).absolute() / f"{self.name}-{digest(self.overrides)[:8]}"


@dataclass(frozen=True)
class Case:
    """One run: a method on targets (several: a stitched front; none: a whole front) with so many tokens."""

    method: Method
    targets: tuple[float, ...]
    tokens: int
    seed: int

    def folder(self, setting: Setting) -> Path:
        """Its run folder."""
        bounds = "-".join(f"{t:g}x" for t in self.targets) or "front"
        return setting.folder / self.method.folder / bounds / f"{self.tokens}-{self.seed}"

    def overrides(self, setting: Setting) -> list[str]:
        """Its settings as words of a command line."""
        bounds = ", ".join(f"{t:g}x" for t in self.targets)
        value = f"[{bounds}]" if len(self.targets) > 1 else bounds
        return [
            *setting.overrides,
            f"search={self.method.search}",
            *self.method.settings,
            *([f"constraints={{params: {value}}}"] if self.targets else []),
            *(f"tokens={self.tokens}", f"seed={self.seed}", f"out={self.folder(setting)}"),
        ]


@dataclass(frozen=True)
class Searched:
    """What a finished search left: its rows in order, and what it took."""

    frame: pd.DataFrame
    wall: float  # seconds, ask and tell included
    thread: float  # processor seconds of evaluating
    block_runs: float
    named: tuple[Candidate, ...] = ()  # the finalists that the searcher names; none when its results say them

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
        named = tuple(finals.chosen(ledger.events(PHASE)))
        thread, runs = sums.get("thread_seconds", 0.0), sums.get("block_runs", 0.0)
        return Searched(ledger.to_frame(), wall, thread, runs, named)


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
