"""`autoprune bench ablation`: what each part of search=auto is worth: the search without it, at equal tokens.

Rows leave one part out. *table*: no sensitivity table, the start is the best uniform plan. *model*: nothing is learnt
from earlier rounds but at the same champion. *beliefs*: races go by measured gaps alone. *races*: every contender that
passes the first windows runs to the cap. *draws*: moves come from the model's mean, not from draws
from its uncertainty. Numbers as in `bench search`, which runs and scores them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from autoprune.objective import Array
from autoprune.searchers.anchors import Limits
from autoprune.searchers.auto import Auto
from autoprune.searchers.race import Belief
from autoprune.searchers.rounds import SEEDS
from autoprune.searchers.script import Script
from autoprune.searchers.surrogate import Posterior
from autoprune.space import Candidate

VAGUE = 1e6  # variance of a belief that says nothing


class NoTable(Auto):
    """Starts from what the problem suggests; steps have no effect known before."""

    def _measure(self) -> Script:
        self._effects = [np.zeros(int(size)) for size in self._sizes]
        yield from ()

    def _opening(self, limits: Limits) -> list[Candidate]:
        return limits.largest(self.problem.seeds, SEEDS) or super()._opening(limits)


class NoModel(Auto):
    """Learns from rounds at the present champion only."""

    def _learn(self, champion: Candidate, beliefs: Mapping[Candidate, Belief]) -> None:
        self._model.forget(champion)
        super()._learn(champion, beliefs)


class NoBeliefs(Auto):
    """Races go by measured gaps alone."""

    def _believed(self, posterior: Posterior, steps: Array) -> list[Belief]:
        return [Belief(b.gap, VAGUE) for b in super()._believed(posterior, steps)]


class NoRaces(Auto):
    """Nobody leaves a race before its cap."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._rules = replace(self._rules, z=np.inf, drop=np.inf)


class NoDraws(Auto):
    """Moves come from the model's mean."""

    def _drawn(self, posterior: Posterior, rng: np.random.Generator, count: int) -> Array:
        return np.tile(posterior.best, (count, 1))


PARTS: Mapping[str, type[Auto]] = {
    "no table": NoTable,
    "no model": NoModel,
    "no beliefs": NoBeliefs,
    "no races": NoRaces,
    "no draws": NoDraws,
}


def main(args: Sequence[str]) -> None:
    """`bench search` over the whole method and each one without a part."""
    from autoprune.bench import search

    variants = [
        f"{name}=auto:search._target_={part.__module__}.{part.__qualname__}" for name, part in PARTS.items()
    ]
    fixed = ["--methods", ",".join(["auto", *variants]), "--to", "results/search/ablation.md"]
    search.compare("ablation", __doc__, args, fixed)
