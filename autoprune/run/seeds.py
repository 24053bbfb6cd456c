"""Plans worth starting from: uniform allocations, and for latency targets whole sublayers gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.objective import Constraint
from autoprune.space import Candidate, Space
from autoprune.uniform import uniform_candidates

LATENCIES = ("prefill", "decode")
DROPPED = 8  # seeds with dropped sublayers


def seed_candidates(
    space: Space, constraints: Sequence[Constraint], ratios: Sequence[float], seed: int
) -> tuple[Candidate, ...]:
    """Uniform allocations at the constraint's ratio, or at all `ratios`; sublayers dropped for latency constraints."""
    dense = space.cost(space.dense)
    if not constraints:
        found = [space.dense, *(c for r in ratios for c in uniform_candidates(space, r))]
        return tuple(dict.fromkeys(found))
    found = []
    for constraint in constraints:
        found += uniform_candidates(space, constraint.bound / dense[constraint.metric], constraint.metric)
        if constraint.metric in LATENCIES:
            found += [
                dropped(space, constraints, np.random.default_rng([seed, 7, i])) for i in range(DROPPED)
            ]
    fitting = [c for c in found if not any(k.violation(space.cost(c)) for k in constraints)]
    return tuple(dict.fromkeys(fitting))


def dropped(space: Space, constraints: Sequence[Constraint], rng: np.random.Generator) -> Candidate:
    """Sites set to zero in random order, the first and the last block last, until the constraints hold."""
    last = max(g.block for g in space.genes)
    inner = [i for i, g in enumerate(space.genes) if 0 < g.block < last]
    outer = [i for i, g in enumerate(space.genes) if not 0 < g.block < last]
    candidate = space.dense
    for gene in [*rng.permutation(inner).tolist(), *rng.permutation(outer).tolist()]:
        if not any(c.violation(space.cost(candidate)) for c in constraints):
            break
        candidate = candidate.with_value(gene, 0)
    return space.repair(candidate, constraints, rng)
