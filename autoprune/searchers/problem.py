"""What a searcher is given: the space, what is wanted, and where it may look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.errors import SettingError, UnboundedError
from autoprune.objective import Constraint, Fidelity, Objective, Result, Split
from autoprune.space import Candidate, CostTable, OptionGene, Space
from autoprune.stepwise import StepWalk
from autoprune.walk import Walk

FLOOR = 1e-9  # below this a metric's logarithm says nothing


@dataclass(frozen=True)
class Problem:
    """A search problem: `windows` fitness windows of `window` tokens each; `seeds` are plans worth starting from.

    `tokens` is what the phase may spend, for methods that plan ahead; None when nothing limits it. `around` is the plan
    that the ladders were built around, first of the seeds; None where that is the dense model.
    """

    space: Space
    objectives: tuple[Objective, ...]
    constraints: tuple[Constraint, ...] = ()
    seed: int = 0
    windows: int = 1
    seeds: tuple[Candidate, ...] = ()
    tokens: int | None = None
    window: int = 1
    around: Candidate | None = None

    @property
    def base(self) -> Candidate:
        """Where the weights are at their best: single changes are measured there."""
        return self.space.dense if self.around is None else self.around

    def sizes(self, method: str) -> np.ndarray:
        """Number of options of each gene; raises SettingError when `method` meets an array gene."""
        genes = self.space.genes
        if not all(isinstance(g, OptionGene) for g in genes):
            raise SettingError(f"search={method} takes option genes only; the space holds array genes")
        return np.array([len(g.options) for g in genes if isinstance(g, OptionGene)])

    def quality(self, method: str) -> Objective:
        """The one objective that is not a cost; raises SettingError when `method` is asked for more than that and one
        cost beside it."""
        costs = self.space.cost(self.space.dense)
        found = [o for o in self.objectives if o.metric not in costs]
        if len(found) != 1 or len(self.objectives) > 2:
            named = ",".join(o.metric for o in self.objectives)
            raise SettingError(
                f"objectives=[{named}]: search={method} takes one quality, such as kl, and at most one cost beside it; "
                "search=nsga2 takes any"
            )
        return found[0]

    def bounded(self, method: str) -> None:
        """Raise UnboundedError when there is no constraint, for a method that works at one budget."""
        if not self.constraints:
            raise UnboundedError(
                f"search={method} works at one budget: set for example constraints='{{params: 0.6x}}'"
            )

    def fidelity(self, windows: int, setting: str) -> Fidelity:
        """The first `windows` fitness windows; raises SettingError when there are not as many."""
        if not 1 <= windows <= self.windows:
            raise SettingError(
                f"{setting}={windows} is not between 1 and the {self.windows} fitness windows there are"
            )
        return Fidelity(Split.FITNESS, (0, windows))

    def drawn(self, windows: int, *step: int) -> Fidelity:
        """So many fitness windows in a row, at one of the places that do not overlap; seed and `step` say which."""
        places = self.windows // windows
        start = int(np.random.default_rng([self.seed, 1, *step]).integers(places)) * windows
        return Fidelity(Split.FITNESS, (start, start + windows))

    def table(self, metric: str, method: str) -> CostTable:
        """The additive table of a cost; raises SettingError for a cost that does not add up over genes."""
        found = self.space.cost_table(metric)
        if found is None:
            raise SettingError(
                f"search={method} needs costs that add up over sites, and {metric} does not; "
                "search=evopress+ and nsga2 take any"
            )
        return found

    def values(self, result: Result) -> list[float]:
        """The objectives of a usable result, all to be minimised."""
        return [o.value(result.metrics) for o in self.objectives]


def step_rng(seed: int, step: int) -> np.random.Generator:
    """A generator that depends on the seed and the step number only."""
    return np.random.default_rng([seed, step])


def fill(
    space: Space,
    candidate: Candidate,
    genes: Sequence[int],
    constraints: Sequence[Constraint],
    rng: np.random.Generator,
) -> Candidate:
    """Raise random genes among `genes`, one option at a time, while every constraint holds; bounded by the options."""
    values, sizes = (
        list(candidate.indices()),
        [len(g.options) for g in space.genes if isinstance(g, OptionGene)],
    )
    tables = [space.cost_table(c.metric) for c in constraints]
    additive = [t for t in tables if t is not None]
    highest = np.array(values)
    highest[list(genes)] = np.array(sizes)[list(genes)] - 1
    if len(additive) == len(tables):
        walk = Walk(candidate, constraints, additive)
        walk.fill(highest, rng)
        return walk.candidate()
    steps = StepWalk(candidate, constraints, space.cost)
    steps.fill(highest, rng)
    return steps.candidate()
