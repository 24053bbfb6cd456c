"""`autoprune bench tabular`: every method on problems whose best plans are known; no model is run.

First table: 12 blocks (24 genes), `params: 0.5x`, defaults but for what `SETTINGS` names. How far the loss of the best
of a method's 8 finalists lies above the exact optimum; spent is what its evaluations cost, counted in windows. Median
over seeds, each another problem and another search. Second table: the enumerated case (every plan of the last four
blocks of docs-llama on 16 windows): how many evaluations of 16 windows a method needs until the front that it would
report has 95 % of the true hypervolume (share of dense parameters and log10 KL; reference: all parameters and the KL
of the best uniform plan at 0.3x), and the share it ends with. A smaller evaluation counts for its windows' share, one
that is made again for nothing, as in a run. A method that names its finalists (at most 48) is read by these.
Methods that work at one budget take turns at 28: 0.3x, 0.325x, … 0.975x, whose optima have 97.5 % of the volume.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from autoprune.bench.methods import searcher, structured, sublayers
from autoprune.bench.table import count, parser, publish
from autoprune.objective import Constraint, Fidelity, Objective, Proposal, Result, non_dominated
from autoprune.report.hypervolume import hypervolume
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.enumerated import Enumerated
from autoprune.searchers.problem import Problem
from autoprune.searchers.tabular import PAIRS, Tabular
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Candidate, Space
from autoprune.study import Searcher
from autoprune.uniform import uniform_candidates

METHODS = ("auto", "random", "greedy", "dp", "milp", "local", "evopress", "evopress+", "nsga2")
FRONTS = ("auto", "random", "nsga2", "dp", "milp")  # those that need no constraint
SETTINGS: Mapping[str, Mapping[str, Any]] = {  # the enumerated case has 16 windows and few plans
    "random": {"windows": 16},
    "auto": {"smallest": 0.1},  # the reference leaves room below the smallest uniform plan
    "nsga2": {"windows": 16, "population": 32},
    "local": {"windows": 16},
    "dp": {"confirm": 12, "budgets": 40, "smallest": 0.1},
    "milp": {"confirm": 12, "budgets": 40, "smallest": 0.1},
    "evopress": {"offspring": 16, "survivors": [4, 2, 1]},
    "evopress+": {"offspring": 16, "survivors": [4, 2, 1]},
}
SHAPE = Shape(
    "llama", blocks=12, hidden=144, heads=6, kv_groups=3, head_dim=24, ffn=256, vocabulary=2048, tied=True
)
OBJECTIVES = (Objective("kl"), Objective("params"))
RATIO, WINDOWS, FINALISTS = 0.5, 64, 8
NAMED = 48  # plans of a front that a run looks at again
UNIFORM = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)  # what a search for a front starts from
TARGETS = tuple(round(0.3 + 0.025 * i, 3) for i in range(28))
SMALLEST = 1e-5  # KL below this is the table's rounding

Evaluate = Callable[[Proposal], Result]


def main(args: Sequence[str]) -> None:
    """Run, print and write both tables."""
    given = parser("tabular", __doc__, model=False)
    given.add_argument("--methods", nargs="+", default=METHODS, help="which methods")
    given.add_argument("--seeds", type=count, default=3, help="how many seeds, from 0")
    given.add_argument("--windows", type=int, default=16_000, help="window evaluations of a search")
    given.add_argument("--evaluations", type=int, default=1500, help="of 16 windows, in the enumerated case")
    options = given.parse_args(list(args))
    kinds = tuple(PAIRS)
    lines = [f"| method | {' | '.join(kinds)} | spent |", "|---|" + "---|" * (len(kinds) + 1)]
    for name in options.methods:
        found = [[gap(name, kind, seed, options.windows) for seed in range(options.seeds)] for kind in kinds]
        cells = [f"{statistics.median(g for g, _ in row):.1%}" for row in found]
        spent = statistics.median(s for row in found for _, s in row)
        lines.append(f"| {name} | {' | '.join(cells)} | {spent:,.0f} |")
    lines += ["", "| method | evaluations to 95 % | share at the end | after |", "|---|---|---|---|"]
    case = EnumeratedRace(Enumerated.load())
    for name in options.methods:
        raced = [case.run(name, seed, options.evaluations) for seed in range(options.seeds)]
        needed = statistics.median(r[0] for r in raced)
        share, spent = (statistics.median(r[i] for r in raced) for i in (1, 2))
        said = f"{needed:.0f}" if np.isfinite(needed) else "not reached"
        lines.append(f"| {name} | {said} | {share:.1%} | {spent:.0f} |")
    publish("tabular", __doc__, args, "\n".join(lines), options.to)


def gap(name: str, kind: str, seed: int, windows: int) -> tuple[float, int]:
    """How far above the optimum a method ends, and what it spent in windows."""
    space = structured(SHAPE, [AnalyticCosts(SHAPE)])
    limit = Constraint("params", RATIO * space.cost(space.dense)["params"], f"{RATIO:g}x")
    problem = Problem(
        space, OBJECTIVES, (limit,), seed, WINDOWS, seed_candidates(space, [limit], (), seed), windows
    )
    evaluate = Tabular(space, seed, kind)
    made, spent, told = searcher(name, problem), 0, list[Result]()
    for results in driven(made, evaluate):
        told += results
        spent += sum(r.proposal.fidelity.count for r in results)
        if spent >= windows:
            break
    best = min(map(evaluate.loss, finalists(made, told, limit)))
    return max(0.0, best / evaluate.optimum(limit) - 1.0), spent  # below 0 by rounding only


def driven(made: Searcher, evaluate: Evaluate) -> Iterator[list[Result]]:
    """The results of each batch, told; ends when nothing is proposed any more."""
    while not made.finished and (asked := made.ask(made.batch)):
        results = [evaluate(p) for p in asked]
        made.tell(results)
        yield results


def finalists(made: Searcher, told: Sequence[Result], limit: Constraint) -> list[Candidate]:
    """What a run would look at again: named by the searcher, or the best of the largest fidelity."""
    named = list(getattr(made, "finalists", list)())
    if not named:
        usable = [r for r in told if r.ok and not limit.violation(r.metrics)]
        largest = max(r.proposal.fidelity.count for r in usable)
        ranked = sorted(
            (r for r in usable if r.proposal.fidelity.count == largest), key=lambda r: r.metrics["kl"]
        )
        named = list(dict.fromkeys(r.proposal.candidate for r in ranked))
    return named[:FINALISTS]


class EnumeratedRace:
    """How soon a method's front holds a share of the true one."""

    def __init__(self, case: Enumerated) -> None:
        self.case = case
        self.space: Space = sublayers(case.genes, case.full, [case.costs])
        self._dense = self.space.cost(self.space.dense)["params"]
        uniform = [self._point(c)[1] for c in uniform_candidates(self.space, UNIFORM[0])]
        self._reference = (1.0, min(uniform))
        self.whole = self.volume(case.front(self.space))

    def run(self, name: str, seed: int, evaluations: int, share: float = 0.95) -> tuple[float, float, float]:
        """Evaluations until the share is reached (infinite when it is not), the share at the end, evaluations spent."""
        evaluate, spent, needed, reached = self.case.evaluator(self.space), 0.0, float("inf"), 0.0
        largest: dict[Candidate, Result] = {}
        met: set[tuple[Candidate, Fidelity]] = set()
        for results, named in self._turns(name, seed, evaluate):
            fresh = {(r.proposal.candidate, r.proposal.fidelity) for r in results} - met
            met |= fresh
            spent += sum(fidelity.count for _, fidelity in fresh) / self.case.windows
            for result in results:
                kept = largest.setdefault(result.proposal.candidate, result)
                if result.proposal.fidelity.count >= kept.proposal.fidelity.count:
                    largest[result.proposal.candidate] = result
            reached = self.volume(named or self._reported(list(largest.values()))) / self.whole
            if reached >= share:
                needed = min(needed, spent)
            if spent >= evaluations:
                break
        return needed, reached, spent

    def volume(self, candidates: Sequence[Candidate]) -> float:
        """The hypervolume of the candidates' true values."""
        return hypervolume([self._point(c) for c in candidates], self._reference)

    def _point(self, candidate: Candidate) -> tuple[float, float]:
        kl = max(float(self.case.truth[self.case.row(candidate)]), SMALLEST)
        return self.space.cost(candidate)["params"] / self._dense, float(np.log10(kl))

    def _reported(self, results: Sequence[Result]) -> list[Candidate]:
        """The front by what was measured on most windows."""
        most = max(r.proposal.fidelity.count for r in results)
        usable = [r for r in results if r.proposal.fidelity.count == most]
        points = [(r.metrics["params"], r.metrics["kl"]) for r in usable]
        return [usable[i].proposal.candidate for i in non_dominated(points)]

    def _turns(
        self, name: str, seed: int, evaluate: Evaluate
    ) -> Iterator[tuple[list[Result], list[Candidate]]]:
        """The batches of one search without constraints, with the front it names, or of one at each target in turn."""
        bounds = (
            [()] if name in FRONTS else [(Constraint("params", t * self._dense, f"{t:g}x"),) for t in TARGETS]
        )
        runs = []
        for limits in bounds:
            seeds = seed_candidates(self.space, limits, UNIFORM, seed)
            problem = Problem(self.space, OBJECTIVES, limits, seed, self.case.windows, seeds)
            made = searcher(name, problem, SETTINGS.get(name))
            name_all = getattr(made, "finalists", list) if not limits else list
            runs.append((driven(made, evaluate), name_all))
        while runs:
            for run in list(runs):
                if results := next(run[0], None):
                    yield results, list(run[1]())[:NAMED]
                else:
                    runs.remove(run)
