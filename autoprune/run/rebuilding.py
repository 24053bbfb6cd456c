"""Phases that rebuild the supernet: each iteration searches on ladders refit around what the one before found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, cast

import numpy as np
import pandas as pd

from autoprune.ledger import Ledger
from autoprune.run.seeds import seed_candidates
from autoprune.run.targets import Shared, Target, TargetsDriver, winner
from autoprune.space import Candidate, OptionGene, OptionSpace, Plan, Space
from autoprune.study import Phase, SupernetSpec


class Rebuilds(Protocol):
    """What this driver asks of a searcher, besides searching."""

    iterations: int

    def around(self, gene: OptionGene, centre: float, iteration: int) -> tuple[int, ...]:
        """The options of a site in an iteration, from those of the run's own space and the middle."""

    def follows(self, iteration: int) -> bool:
        """Whether the ladders of an iteration aim at the dense model's hidden states."""


class RebuildingDriver(TargetsDriver):
    """Some iterations for every target, with equal shares of tokens; the first starts around uniform.

    Everything follows from the settings and the ledger, so a resumed run rebuilds the same ladders.
    """

    def __init__(self, shared: Shared) -> None:
        super().__init__(shared)
        self._rebuilds = cast(Rebuilds, self._searcher(self.targets[0], (), shared.budget))
        self.count = len(self.targets) * self._rebuilds.iterations

    def phase(self, number: int, ledger: Ledger | None = None) -> Phase:
        """A phase by number, around the winner of the one before; without a ledger around uniform."""
        shared, (target, iteration) = self._shared, self._place(number)
        frame = pd.DataFrame() if ledger is None else ledger.to_frame()
        space, seeds = self._start(number, frame)
        reference = space.decode(seeds[0])
        options = {g.name: g.options for g in space.genes if isinstance(g, OptionGene)}
        return Phase(
            number=number,
            space=space,
            searcher=self._made(space, target, seeds, self._share(number)),
            objectives=shared.objectives,
            constraints=target.constraints,
            budget=self._share(number),
            window=shared.window,
            supernet=SupernetSpec(options, reference, self._rebuilds.follows(iteration)),
        )

    def rivals(self, ledger: Ledger) -> list[list[tuple[int, ...]]]:
        """Of every target each iteration by itself, the last one first: other ladders make other models of a plan."""
        count = self._rebuilds.iterations
        return [[(t * count + i,) for i in reversed(range(count))] for t in range(len(self.targets))]

    def space(self, number: int, ledger: Ledger) -> Space:
        """The options of that iteration."""
        return self._start(number, ledger.to_frame())[0]

    def _place(self, number: int) -> tuple[Target, int]:
        target, iteration = divmod(number, self._rebuilds.iterations)
        return self.targets[target], iteration

    def _start(self, number: int, frame: pd.DataFrame) -> tuple[Space, tuple[Candidate, ...]]:
        """The space of a phase and the candidates it starts from; the first of them is its reference."""
        target, iteration = self._place(number)
        if iteration == 0:
            space = self._spanned(dict.fromkeys(self._names, self._fraction(target)), 0)
            seeds = seed_candidates(space, target.constraints, (), self._shared.seed)
            return space, seeds or (self._fitting(space, target),)
        before, seeds = self._start(number - 1, frame)
        won = winner(frame, number - 1, self._quality)
        plan = before.decode(seeds[0] if won is None else won)
        space = self._spanned(self._shares(plan), iteration)
        return space, (_candidate(space, plan),)

    @property
    def _names(self) -> list[str]:
        return [g.name for g in self._shared.space.genes]

    def _spanned(self, shares: Mapping[str, float], iteration: int) -> Space:
        """The run's space with the options of an iteration around these shares of the full sites."""
        genes = [g for g in self._shared.space.genes if isinstance(g, OptionGene)]
        around = self._rebuilds.around
        options = {g.name: around(g, shares[g.name] * g.options[-1], iteration) for g in genes}
        return cast(OptionSpace, self._shared.space).with_options(options)

    def _shares(self, plan: Plan) -> dict[str, float]:
        genes = [g for g in self._shared.space.genes if isinstance(g, OptionGene)]
        return {g.name: int(plan.at(g.block, g.kind).get(g.setting)) / g.options[-1] for g in genes}

    def _fraction(self, target: Target) -> float:
        """What to keep of every site for an additive cost to meet the tightest bound."""
        space = self._shared.space
        dense, found = space.cost(space.dense), [1.0]
        least = space.cost(Candidate((0,) * len(space.genes)))
        for constraint in target.constraints:
            span = dense[constraint.metric] - least[constraint.metric]
            found.append((constraint.bound - least[constraint.metric]) / span if span > 0 else 1.0)
        return max(0.0, min(found))

    def _fitting(self, space: Space, target: Target) -> Candidate:
        rng = np.random.default_rng([self._shared.seed, 0])
        return space.repair(space.dense, target.constraints, rng)


def _candidate(space: Space, plan: Plan) -> Candidate:
    """The candidate of a plan whose options the space has."""
    genes = [g for g in space.genes if isinstance(g, OptionGene)]
    kept = [int(plan.at(g.block, g.kind).get(g.setting)) for g in genes]
    return Candidate(tuple(g.options.index(k) for g, k in zip(genes, kept, strict=True)))
