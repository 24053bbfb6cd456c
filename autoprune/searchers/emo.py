"""EMO-PMS / EMO-DIR (card A4): a small evolution for each sub-network, their fronts joined by summed global impairment.

After the published summary, with what our contracts measure: a sub-network's choices are scored by the whole model's
quality with all other sub-networks dense, which *is* their global impairment, where the paper measures features of
the sub-network alone. Both stages are one searcher, since the second needs nothing but the results of the first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoprune.objective import Array, Objective, Proposal, Result, non_dominated
from autoprune.searchers import checks
from autoprune.searchers.genetic import POPULATION
from autoprune.searchers.knapsack import Knapsack
from autoprune.searchers.nsga2 import NSGA2
from autoprune.searchers.part import divided
from autoprune.searchers.problem import Problem, step_rng
from autoprune.space import Candidate, CostTable

Point = tuple[float, float, Candidate]  # cost, impairment, the part's candidate


class EMO:
    """Evolves each of several sub-networks with all others dense, joins their fronts exactly, then refines as nsga2.

    parts: how many sub-networks of consecutive blocks; part_population: candidates a generation of each of them;
    part_generations: how many generations each has; part_windows: fitness windows of such an evaluation;
    population: joined plans and their mutants, and then candidates a generation of the whole model; windows: fitness
    windows of an evaluation from there on; smallest: share of the dense cost below which nothing is joined.
    """

    method = "emo"
    probes = True  # one sub-network alone cannot meet a bound on the whole model

    def __init__(
        self,
        problem: Problem,
        parts: int = 4,
        part_population: int = 16,
        part_generations: int = 12,
        part_windows: int = 1,
        population: int = 64,
        windows: int = 4,
        smallest: float = 0.3,
    ) -> None:
        checks.at_least("part_population", part_population, POPULATION)
        checks.at_least("part_generations", part_generations, 1)
        checks.smallest(smallest)
        problem.sizes(self.method)
        self.problem = problem
        self._quality = problem.quality(self.method)
        self._cost = problem.table(self._metric(), self.method)
        self._refining = {"population": population, "windows": windows, "smallest": smallest}
        NSGA2(problem, **self._refining)  # type: ignore[arg-type]  # its settings are checked now
        self._smallest, self._joined = smallest, population // 2
        self._coarse = problem.fidelity(part_windows, "search.part_windows")
        self._generations = part_generations
        self._parts = divided(problem.space, parts)
        self._evolutions = [self._evolution(i, part_population, part_windows) for i in range(parts)]
        self.batch = max(population, 1 + parts * part_population)
        self._told: list[dict[Candidate, Point]] = [{} for _ in self._parts]
        self._dense: float | None = None
        self._rounds = self._next = 0
        self._pending: dict[int, list[Proposal]] = {}  # what each part still waits for
        self._order: list[tuple[int, Candidate]] = []
        self._whole: NSGA2 | None = None
        self._waiting = False

    @property
    def finished(self) -> bool:
        """True when the refinement found nothing new."""
        return self._whole is not None and self._whole.finished

    def ask(self, n: int) -> list[Proposal]:
        """A generation of every part together, for they share the dense prefix; later one of the whole model."""
        if self._waiting:
            return []
        if self._whole is None and not self._part_proposals():
            self._whole = NSGA2(replace(self.problem, seeds=self.joined()), **self._refining)  # type: ignore[arg-type]
        if self._whole is None:
            asked = [(c, self._coarse) for _, c in self._order]
        else:
            asked = [(p.candidate, p.fidelity) for p in self._whole.ask(n)]
        proposals = [Proposal(self._next + i, *pair) for i, pair in enumerate(asked)]
        self._next += len(proposals)
        self._waiting = bool(proposals)
        return proposals

    def tell(self, results: Sequence[Result]) -> None:
        """Each part its own; a part whose generation was cut off whole is asked for it again."""
        self._waiting = False
        if self._whole is not None:
            self._whole.tell(results)
            return
        answers: dict[int, list[Result]] = {}
        for (part, _), result in zip(self._order, results, strict=False):
            answers.setdefault(part, []).append(result)
        for part, found in answers.items():
            self._learn(part, found)

    def joined(self) -> tuple[Candidate, ...]:
        """For each of evenly spaced sizes the plan of least summed impairment; seeds where nothing could be joined."""
        fronts = [self._front(part) for part in range(len(self._parts))]
        constraint = [c for c in self.problem.constraints if c.metric == self._cost.metric]
        most = min((c.bound for c in constraint), default=self._cost.dense)
        least = min(max(self._smallest * self._cost.dense, self._cost.smallest), most)
        targets = np.linspace(most, least, self._joined, endpoint=not constraint or least < most)
        found = [self._whole_of(c) for c in join(fronts, self._cost.base, self._cost.metric, targets)]
        rng = step_rng(self.problem.seed, 0)
        fitting = [self.problem.space.repair(c, self.problem.constraints, rng) for c in found]
        return tuple(dict.fromkeys(fitting)) or self.problem.seeds

    def _metric(self) -> str:
        """The cost that sizes are counted in: the first bound's, else the cost objective's, else `params`."""
        bounds = [c.metric for c in self.problem.constraints]
        costs = [o.metric for o in self.problem.objectives if o != self._quality]
        return [*bounds, *costs, "params"][0]

    def _evolution(self, part: int, population: int, windows: int) -> NSGA2:
        """On a part's genes only, without constraints: they are the joined plans' concern."""
        here = self._parts[part]
        objectives = (self._quality, Objective(self._cost.metric))
        levels = [here.within(s) for s in self.problem.seeds]
        seed = int(step_rng(self.problem.seed, 1_000_000 + part).integers(1 << 31))
        own = replace(
            self.problem,
            space=here,
            objectives=objectives,
            constraints=(),
            seed=seed,
            seeds=tuple(dict.fromkeys(levels)),
        )
        return NSGA2(own, population, windows, smallest=0.0)

    def _part_proposals(self) -> list[tuple[int, Candidate]]:
        """The next generation of every part (at first the dense plan too), or what was cut off of the last one."""
        if not self._pending and self._rounds < self._generations:
            asked = {i: e.ask(e.batch) for i, e in enumerate(self._evolutions)}
            self._pending = {i: proposals for i, proposals in asked.items() if proposals}
            self._rounds += 1
        dense = [(-1, self.problem.space.dense)] if self._dense is None else []
        found = [(i, self._parts[i].whole(p.candidate)) for i, ps in self._pending.items() for p in ps]
        self._order = [*dense, *found] if found else []
        return self._order

    def _learn(self, part: int, results: Sequence[Result]) -> None:
        if part < 0:
            self._dense = self._quality.value(results[0].metrics) if results[0].ok else 0.0
            return
        self._evolutions[part].tell(results)
        del self._pending[part]
        for result in results:
            if result.ok:
                own = self._parts[part].within(result.proposal.candidate)
                point = self._part_cost(part, own), self._quality.value(result.metrics)
                self._told[part][own] = (*point, own)

    def _front(self, part: int) -> list[Point]:
        """The part's non-dominated candidates, the dense one among them."""
        dense = self._parts[part].dense
        start = (self._part_cost(part, dense), self._dense or 0.0, dense)
        points = [start, *self._told[part].values()]
        return [points[i] for i in non_dominated([p[:2] for p in points])]

    def _part_cost(self, part: int, own: Candidate) -> float:
        rows = [self._cost.entries[g] for g in self._parts[part].indices]
        return float(sum(row[v] for row, v in zip(rows, own.indices(), strict=True)))

    def _whole_of(self, chosen: Sequence[Candidate]) -> Candidate:
        values: Mapping[int, int] = {
            g: v
            for part, own in zip(self._parts, chosen, strict=True)
            for g, v in zip(part.indices, own.indices(), strict=True)
        }
        return Candidate(tuple(values[g] for g in range(len(self.problem.space.genes))))


def join(
    fronts: Sequence[Sequence[Point]], base: float, metric: str, targets: Sequence[float] | Array
) -> list[list[Candidate]]:
    """Of every front one point, of least summed impairment within each target's cost: exactly, by dynamic programming.

    Targets that nothing meets are left out.
    """
    costs = tuple(tuple(p[0] for p in front) for front in fronts)
    program = Knapsack(
        [np.array([p[1] for p in front]) for front in fronts],
        CostTable(metric, base, costs),
        float(max(targets)),
    )
    choices = [program.best(float(target)) for target in targets]
    return [[front[i][2] for front, i in zip(fronts, c, strict=True)] for c in choices if c is not None]
