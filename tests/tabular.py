"""What searchers are tried on: a small structured space with a tabular loss, no model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from autoprune.objective import Objective, Proposal, Result, Status, parse_constraint
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.problem import Problem
from autoprune.searchers.tabular import WINDOWS, Tabular
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Space, SublayerPlan
from autoprune.study import Searcher
from autoprune.sublayers import SublayerSpace, join
from search_spaces.structured import Structured

SHAPE = Shape(
    "llama", blocks=4, hidden=32, heads=8, kv_groups=4, head_dim=8, ffn=64, vocabulary=100, tied=True
)
KL, NLL, PARAMS, DECODE = (Objective(m) for m in ("kl", "nll", "params", "decode"))

Evaluate = Callable[[Proposal], Result]


@dataclass(frozen=True)
class StepCosts:
    """A synthetic decode time: dear to have a sublayer at all, then unequal steps, deeper blocks dearer."""

    @property
    def base(self) -> Mapping[str, float]:
        """What no plan changes."""
        return {"decode": 0.7}

    def sublayer(self, block: int, plan: SublayerPlan) -> Mapping[str, float]:
        """Rises with the option, flat in places, as measured tables are."""
        if plan.gone:
            return {"decode": 0.0}
        size = float(dict(plan.settings).get("width", 0)) / 16 or float(dict(plan.settings)["kv_groups"])
        return {"decode": (1 + 0.13 * block) * (0.31 + 0.097 * (size // 1.5) ** 1.3)}


def structured_space(shape: Shape = SHAPE) -> SublayerSpace:
    """The structured space of a shape, with analytic costs and the synthetic decode time."""
    return join([Structured()], shape, [AnalyticCosts(shape), StepCosts()])


def tabular_problem(
    bounds: Mapping[str, str] | None = None,
    objectives: Sequence[Objective] = (KL,),
    seed: int = 0,
    space: Space | None = None,
) -> Problem:
    """A problem on the small structured space, seeded as a run is."""
    space = structured_space() if space is None else space
    dense = space.cost(space.dense)
    constraints = tuple(parse_constraint(m, text, dense) for m, text in (bounds or {}).items())
    seeds = seed_candidates(space, constraints, (0.5, 0.8), seed)
    return Problem(space, tuple(objectives), constraints, seed, WINDOWS, seeds)


def drive(searcher: Searcher, evaluate: Evaluate, evaluations: int) -> list[Result]:
    """Ask and tell until as many evaluations are made or nothing is left."""
    done: list[Result] = []
    while len(done) < evaluations and not searcher.finished:
        proposals = searcher.ask(searcher.batch)
        if not proposals:
            break
        results = [evaluate(p) for p in proposals]
        searcher.tell(results)
        done += results
    return done


def trace(searcher: Searcher, problem: Problem, evaluations: int = 150) -> str:
    """A digest of everything a searcher proposes."""
    done = drive(searcher, Tabular(problem.space), evaluations)
    rows = [(p.id, p.candidate.to_json(), p.fidelity.windows, p.parents) for p in (r.proposal for r in done)]
    return hashlib.sha256(repr(rows).encode()).hexdigest()


def failing(evaluate: Evaluate, fails: Callable[[Proposal], bool]) -> Evaluate:
    """The same, but some proposals fail."""

    def outcome(proposal: Proposal) -> Result:
        return Result(proposal, Status.FAILED, reason="asked to") if fails(proposal) else evaluate(proposal)

    return outcome
