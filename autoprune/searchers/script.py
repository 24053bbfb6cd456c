"""Methods written as one flow: a generator yields batches of trials and is sent their results."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass

from autoprune.objective import Fidelity, Proposal, Result
from autoprune.searchers.problem import Problem
from autoprune.space import Candidate


@dataclass(frozen=True)
class Trial:
    """A candidate to be evaluated at a fidelity."""

    candidate: Candidate
    fidelity: Fidelity


Script = Generator[list[Trial], Sequence[Result], None]  # results come in the order of the trials


def complete(candidates: Sequence[Candidate], fidelity: Fidelity, results: list[Result]) -> Script:
    """Asks until all candidates are told, and puts their results, in order, into `results`."""
    while left := candidates[len(results) :]:
        results += yield [Trial(c, fidelity) for c in left]


class Scripted(ABC):
    """Ask and tell around a script: each batch that it yields is one ask, whatever n is.

    A batch that was cut short comes back as the results of its first part. The script must not keep what it is sent
    under another order, nor draw from anything but generators made from the problem's seed.
    """

    batch = 64

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._next = 0
        self._script = self.script()
        self._trials: list[Trial] | None = None
        self._waiting = False
        self._finished = False

    @abstractmethod
    def script(self) -> Script:
        """The method."""

    @property
    def finished(self) -> bool:
        """Whether the script has come to its end."""
        self._begin()
        return self._finished

    def ask(self, n: int) -> list[Proposal]:
        """The batch that the script waits for; nothing while it is being evaluated."""
        self._begin()
        if self._waiting or self._finished or self._trials is None:
            return []
        self._waiting = True
        found = [Proposal(self._next + i, t.candidate, t.fidelity) for i, t in enumerate(self._trials)]
        self._next += len(found)
        return found

    def tell(self, results: Sequence[Result]) -> None:
        """Go on with the script."""
        self._waiting = False
        self._advance(results)

    def _begin(self) -> None:
        if self._trials is None and not self._finished:
            self._advance(None)

    def _advance(self, results: Sequence[Result] | None) -> None:
        try:
            self._trials = next(self._script) if results is None else self._script.send(results)
        except StopIteration:
            self._trials, self._finished = None, True
