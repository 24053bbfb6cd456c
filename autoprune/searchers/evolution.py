"""One elitist parent, offspring raced over stages of growing fidelity: the loop that level-switch methods share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Fidelity, Proposal, Result
from autoprune.searchers.checks import at_least
from autoprune.searchers.problem import Problem, step_rng
from autoprune.space import Candidate

TRIES = 50
KEPT = 8  # finalists

Vary = Callable[[np.random.Generator], Candidate | None]


class Evolution(ABC):
    """Survivors of each stage are scored on more windows; the last one becomes the parent.

    A method says by `variations` how a child is made from `parent`; every generation is one variation's. It gives up
    after `TRIES` draws for every child that is wanted.
    """

    method: str
    single_target = True  # of several targets each takes a phase of its own

    def __init__(
        self,
        problem: Problem,
        offspring: int,
        survivors: Sequence[int],
        windows: Sequence[int],
        generations: int | None,
    ) -> None:
        self.problem = problem
        self.batch = offspring
        self._sizes = problem.sizes(self.method)
        self._quality = problem.quality(self.method)
        problem.bounded(self.method)
        _check(problem, offspring, survivors, windows)
        at_least("generations", generations, 1, null=True)
        self._survivors, self._windows = tuple(survivors), tuple(windows)
        self._generations = generations
        self._parents = list(problem.seeds)
        self._past: dict[Candidate, None] = {}  # parents, latest last
        self._next = 0
        self._step = 0
        self._generation = 0
        self._stage = -1  # -1: choosing among the seeds
        self._pool: list[Candidate] = self._start()
        self._waiting = False

    @abstractmethod
    def variations(self) -> Sequence[Vary]:
        """How children are made, each tried only when the one before made none; None means no child this time."""

    @property
    def parent(self) -> Candidate:
        """The best candidate so far."""
        return self._parents[0]

    def finalists(self) -> list[Candidate]:
        """The parent and the ones before it, latest first."""
        return list(self._past)[::-1][:KEPT]

    @property
    def finished(self) -> bool:
        """True after the asked number of generations, or when the parent has no neighbour left."""
        return not self._pool or (self._generations is not None and self._generation >= self._generations)

    def ask(self, n: int) -> list[Proposal]:
        """The whole pool of the current stage at once, whatever n is: a stage is ranked on the same windows."""
        if self._waiting or self.finished:
            return []
        self._waiting = True
        fidelity = self._fidelity()
        proposals = [Proposal(self._next + i, c, fidelity) for i, c in enumerate(self._pool)]
        self._next += len(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """Keep the best of the stage; failures drop out, and a generation without survivors leaves the parent."""
        self._waiting = False
        ranked = sorted((self._quality.value(r.metrics), i) for i, r in enumerate(results) if r.ok)
        best = [results[i].proposal.candidate for _, i in ranked]
        if self._stage < 0:
            self._parents = best[:1] or self._pool[:1]
            self._breed()
            self._join()
            return
        self._pool = best[: self._survivors[self._stage]]
        self._stage += 1
        if self._stage == len(self._windows) or not self._pool:
            self._parents = self._pool or self._parents
            self._generation += 1
            self._breed()
        self._join()

    def _join(self) -> None:
        """The parent enters the last stage: it is replaced only by who beats it on the same windows."""
        if self._pool and self._stage == len(self._windows) - 1 and self.parent not in self._pool:
            self._pool.append(self.parent)

    def _start(self) -> list[Candidate]:
        rng = step_rng(self.problem.seed, 0)
        seeds = self.problem.seeds or (self.problem.space.dense,)
        repaired = [self.problem.space.repair(s, self.problem.constraints, rng) for s in seeds]
        return list(dict.fromkeys(repaired))

    def _breed(self) -> None:
        self._past.pop(self.parent, None)
        self._past[self.parent] = None
        self._stage = 0
        self._pool = next((p for p in map(self._children, self.variations()) if p), [])

    def _children(self, make: Vary) -> list[Candidate]:
        children: dict[Candidate, None] = {}
        for _ in range(self.batch * TRIES):
            self._step += 1
            child = make(step_rng(self.problem.seed, self._step))
            if child is not None and child != self.parent:
                children.setdefault(child)
            if len(children) == self.batch:
                break
        return list(children)

    def _fidelity(self) -> Fidelity:
        """Windows of the stage; which ones depends on seed, generation and stage only."""
        count = self._windows[self._stage]  # choosing among the seeds, -1, is as careful as the last stage
        return self.problem.drawn(count, self._generation, self._stage + 1)


def _check(problem: Problem, offspring: int, survivors: Sequence[int], windows: Sequence[int]) -> None:
    if len(survivors) != len(windows) or not survivors or survivors[-1] != 1:
        raise SettingError(
            f"search.survivors={list(survivors)} and search.windows={list(windows)} need equal lengths, and a last "
            "survivor of 1"
        )
    if list(survivors) != sorted(survivors, reverse=True) or survivors[0] > offspring or offspring < 1:
        raise SettingError(
            f"search.survivors={list(survivors)} must fall, from at most search.offspring={offspring}"
        )
    if list(windows) != sorted(windows):
        raise SettingError(f"search.windows={list(windows)} must not fall: later stages look closer")
    for count in windows:
        problem.fidelity(count, "search.windows")


def changes(rng: np.random.Generator, most: int) -> int:
    """How many changes a child makes: min(U{1..most}, U{1..most})."""
    return int(min(rng.integers(1, most + 1), rng.integers(1, most + 1)))
