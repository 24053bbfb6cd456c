"""Optuna's samplers behind our contract: studies in memory that are told repaired candidates and say nothing.

Every suggestion is brought within the constraints before it is proposed, so no proposal is infeasible; Optuna is told
the candidate that was evaluated, never the raw suggestion, and how far below each bound it stays (Optuna's own
constraints, <= 0 where they hold). Suggestions made before are moved by single steps until they are new.
"""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

from autoprune.objective import Proposal, Result
from autoprune.searchers.checks import at_least
from autoprune.searchers.problem import Problem, step_rng
from autoprune.searchers.several import Fitting, Scale
from autoprune.space import Candidate

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study

TRIES = 200  # single steps away from a candidate that is known


class OptunaSearcher(ABC):
    """Seeds first, then what the sampler suggests; a subclass names itself, makes its sampler and keeps its study."""

    method: str

    def __init__(self, problem: Problem, batch: int, windows: int, smallest: float) -> None:
        self.problem = problem
        self.batch = batch
        self._sizes = problem.sizes(self.method)
        self._fidelity = problem.fidelity(windows, "search.windows")
        self._scale = Scale(problem)
        self._fitting = Fitting(problem, self._sizes, smallest)
        self._distributions = {f"g{i:05d}": IntDistribution(0, int(n) - 1) for i, n in enumerate(self._sizes)}
        fitted = [self._fitting.fit(s.indices(), step_rng(problem.seed, 0)) for s in problem.seeds]
        self._seeds = list(dict.fromkeys(fitted))
        self._known: set[Candidate] = set()
        self._next = 0
        self._waiting = False
        self._exhausted = False

    @abstractmethod
    def sampler(self, seed: int) -> BaseSampler:
        """The sampler of a study."""

    @abstractmethod
    def study(self) -> Study:
        """The study to ask, told all that is known."""

    @abstractmethod
    def asked(self, study: Study, number: int, proposal: Proposal) -> None:
        """Note that a proposal answers the study's trial of a number."""

    @abstractmethod
    def learn(self, trial: FrozenTrial, proposal: Proposal) -> None:
        """Take in the evaluated trial of a proposal."""

    @property
    def finished(self) -> bool:
        """True when no new candidate was found in many tries."""
        return self._exhausted

    def ask(self, n: int) -> list[Proposal]:
        """Up to n new candidates."""
        if self._waiting or self._exhausted:
            return []
        found: dict[Candidate, Proposal] = {}
        with silence():
            study = self.study()
            while len(found) < n and (proposal := self._propose(study, found)) is not None:
                found[proposal.candidate] = proposal
        self._next += len(found)
        self._waiting, self._exhausted = bool(found), not found
        return list(found.values())

    def tell(self, results: Sequence[Result]) -> None:
        """Values of what was evaluated; what failed is not suggested again, and teaches nothing else."""
        self._waiting = False
        with silence():
            for result in results:
                self._known.add(result.proposal.candidate)
                self._next = max(self._next, result.proposal.id + 1)
                self.learn(self._trial(result), result.proposal)

    def open_study(self, seed: int) -> Study:
        """A new study, one direction an objective."""
        directions = [StudyDirection.MINIMIZE] * len(self.problem.objectives)
        return optuna.create_study(directions=directions, sampler=self.sampler(seed))

    def frozen(self, candidate: Candidate, **content: Any) -> FrozenTrial:
        """A trial of a candidate."""
        params = dict(zip(self._distributions, candidate.indices(), strict=True))
        return create_trial(params=params, distributions=dict(self._distributions), **content)

    def _propose(self, study: Study, found: Collection[Candidate]) -> Proposal | None:
        number = self._next + len(found)
        trial = study.ask(self._distributions)  # type: ignore[arg-type]
        study.tell(trial, state=TrialState.FAIL)  # what is evaluated is told as a trial of its own
        values = [int(trial.params[name]) for name in self._distributions]
        candidate = self._new(values, number, found)
        if candidate is None:
            return None
        proposal = Proposal(number, candidate, self._fidelity)
        self.asked(study, trial.number, proposal)
        return proposal

    def _new(self, values: Sequence[int], number: int, found: Collection[Candidate]) -> Candidate | None:
        for seed in self._seeds:
            if seed not in self._known and seed not in found:
                return seed
        rng = step_rng(self.problem.seed, number + 1)
        for _ in range(TRIES):
            candidate = self._fitting.fit(values, rng)
            if candidate not in self._known and candidate not in found:
                return candidate
            row = np.array(values)
            row[rng.integers(len(row))] += rng.choice((-1, 1))
            values = np.clip(row, 0, self._sizes - 1).tolist()
        return None

    def _trial(self, result: Result) -> FrozenTrial:
        candidate = result.proposal.candidate
        if not result.ok:
            return self.frozen(candidate, state=TrialState.FAIL)
        cost, dense = (self.problem.space.cost(c) for c in (candidate, self.problem.space.dense))
        over = {
            c.metric: c.violation(cost) or min(0.0, cost[c.metric] - c.bound)
            for c in self.problem.constraints
        }
        shares = {metric: value / max(dense[metric], 1e-12) for metric, value in over.items()}
        return self.frozen(candidate, values=self._scale.values(result), constraints=shares)


class MemorylessSearcher(OptunaSearcher):
    """Proposals follow from the seed, their numbers and the past alone: study and sampler are made anew for each batch.

    So a run is resumed by telling only. Candidates of the same batch are running trials to the sampler, which keeps
    away from them (TPE by a constant liar, GP by integrating over their outcomes).
    """

    memoryless = True

    def __init__(self, problem: Problem, batch: int, windows: int, smallest: float) -> None:
        at_least("batch", batch, 1)
        super().__init__(problem, batch, windows, smallest)
        self._past: list[FrozenTrial] = []

    def study(self) -> Study:
        """A new one, with the whole past in it."""
        study = self.open_study(zlib.crc32(f"{self.problem.seed},{self._next}".encode()))
        study.add_trials(self._past)
        return study

    def asked(self, study: Study, number: int, proposal: Proposal) -> None:
        """The candidate is running from now on."""
        study.add_trial(self.frozen(proposal.candidate, state=TrialState.RUNNING))

    def learn(self, trial: FrozenTrial, proposal: Proposal) -> None:
        """Kept for the next study."""
        self._past.append(trial)


@contextmanager
def silence() -> Iterator[None]:
    """Optuna logs errors only; its level is the whole process's, so it is put back."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
