"""Rounds of one search: each later one goes on from the plan found so far, on ladders refit behind that plan."""

from __future__ import annotations

import numpy as np

from autoprune.errors import SettingError
from autoprune.ledger import Ledger
from autoprune.run.finals import chosen
from autoprune.run.targets import PHASE, Shared, Target, TargetsDriver, winner
from autoprune.space import Candidate, OptionGene
from autoprune.study import Budget, Phase, SupernetSpec


class RoundsDriver(TargetsDriver):
    """Every target in as many rounds as there are shares of its tokens; the first has the run's own ladders.

    Everything follows from the settings and the ledger, so a resumed run rebuilds the same ladders.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._check()
        self._rounds = len(shared.rounds)
        self.count = len(self.targets) * self._rounds

    def phase(self, number: int, ledger: Ledger | None = None) -> Phase:
        """A phase by number; a later round needs the ledger that holds the ones before."""
        shared, (target, turn) = self._shared, self._place(number)
        found = None if ledger is None else self._found(number - 1, ledger)
        seeds: tuple[Candidate, ...] = ()
        if found is not None:
            seeds = (self._fitting(found, target, number),)
        around = seeds[0] if seeds and turn else None
        return Phase(
            number=number,
            space=shared.space,
            searcher=self._searcher(target, seeds, self._share(number), around),
            objectives=shared.objectives,
            constraints=target.constraints,
            budget=self._share(number),
            window=shared.window,
            supernet=None if around is None else self._spec(around, turn),
        )

    def rivals(self, ledger: Ledger) -> list[list[tuple[int, ...]]]:
        """Of every target each round by itself, the last one first: other ladders make other models of a plan."""
        starts = range(0, self.count, self._rounds)
        return [[(start + turn,) for turn in reversed(range(self._rounds))] for start in starts]

    def _check(self) -> None:
        said = f"calibration.rounds={list(self._shared.rounds)}: ladders are rebuilt around one plan"
        if not all(target.constraints for target in self.targets):
            raise SettingError(f"{said}; set for example constraints='{{params: 0.5x}}'")
        if not getattr(super().phase(0).searcher, "single_target", False):
            raise SettingError(
                f"{said}, and this search looks for a front; search=auto and evopress+ work at one bound"
            )
        if not all(isinstance(gene, OptionGene) for gene in self._shared.space.genes):
            raise SettingError(f"{said}; merged experts cannot be refit, leave space=merging out")

    def _place(self, number: int) -> tuple[Target, int]:
        target, turn = divmod(number, self._rounds)
        return self.targets[target], turn

    def _spec(self, around: Candidate, turn: int) -> SupernetSpec:
        reference, follow = self._shared.space.decode(around).unmasked, self._shared.follow
        return SupernetSpec({}, reference, follow is not None and turn + 1 >= follow)

    def _found(self, number: int, ledger: Ledger) -> Candidate | None:
        """The plan that a phase came to, or the last one before that came to any: a champion, or the best result."""
        events = {int(e["number"]): e for e in ledger.events(PHASE)}
        frame = ledger.to_frame()
        for phase in range(number, -1, -1):
            named = chosen([events[phase]]) if phase in events else []
            best = next((c for c in named if self._met(c, phase)), None)
            if best is None:
                best = winner(frame, phase, self._quality)
            if best is not None:
                return best
        return None

    def _met(self, candidate: Candidate, phase: int) -> bool:
        return self._place(phase)[0].met(self._shared.space.cost(candidate))

    def _fitting(self, candidate: Candidate, target: Target, number: int) -> Candidate:
        rng = np.random.default_rng([self._shared.seed, number])
        return self._shared.space.repair(candidate, target.constraints, rng)

    def _share(self, number: int) -> Budget:
        """Of a target's equal part of the budget the round's share."""
        shares, (target, turn) = self._shared.rounds, divmod(number, len(self._shared.rounds))
        whole, count = self._shared.budget, len(self.targets)
        low, high = ((target + sum(shares[:stop]) / sum(shares)) / count for stop in (turn, turn + 1))

        def of(total: int | None) -> int | None:
            return None if total is None else round(total * high) - round(total * low)

        seconds = None if whole.seconds is None else whole.seconds * (high - low)
        return Budget(of(whole.tokens), of(whole.evaluations), seconds)
