"""Plans worth starting from: uniform allocations, and for latency targets whole sublayers gone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.allocation import Allocation, allocated
from autoprune.errors import SettingError
from autoprune.objective import Constraint
from autoprune.space import Candidate, OptionGene, Space, dense_costs, is_mask
from autoprune.uniform import uniform_candidates

LATENCIES = ("prefill", "decode")
DROPPED = 8  # seeds with dropped sublayers
SPREAD = 0.25  # of random plans' shares around a common level
TRIES = 20  # draws for each random plan that is wanted


def seed_candidates(
    space: Space,
    constraints: Sequence[Constraint],
    ratios: Sequence[float],
    seed: int,
    allocations: Sequence[Allocation] = (),
) -> tuple[Candidate, ...]:
    """Uniform allocations at the constraint's ratio, or at all `ratios`; sublayers dropped for latency constraints.

    Where the space has masks and units, uniform in both, and in either alone; then what `allocations` say.
    """
    dense = dense_costs(space)
    if not constraints:
        found = [space.dense, *(c for r in ratios for c in _uniform(space, r, "params"))]
        return tuple(dict.fromkeys(found))
    found = []
    for constraint in constraints:
        found += _uniform(space, constraint.bound / dense[constraint.metric], constraint.metric)
        said = (allocated(space, allocation, constraint) for allocation in allocations)
        found += [candidate for candidate in said if candidate is not None]
        if constraint.metric in LATENCIES:
            found += [
                dropped(space, constraints, np.random.default_rng([seed, 7, i])) for i in range(DROPPED)
            ]
    fitting = [c for c in found if not any(k.violation(space.cost(c)) for k in constraints)]
    return tuple(dict.fromkeys(fitting))


def _uniform(space: Space, ratio: float, metric: str) -> list[Candidate]:
    found = uniform_candidates(space, ratio, metric)
    if len({is_mask(g.setting) for g in space.genes}) > 1:
        found += uniform_candidates(space, ratio, metric, is_mask)
        found += uniform_candidates(space, ratio, metric, lambda setting: not is_mask(setting))
    return found


def dropped(space: Space, constraints: Sequence[Constraint], rng: np.random.Generator) -> Candidate:
    """Sites set to zero in random order, the first and the last block last, until the constraints hold."""
    last = max(g.block for g in space.genes)
    sites = [i for i, g in enumerate(space.genes) if isinstance(g, OptionGene)]
    inner = [i for i in sites if 0 < space.genes[i].block < last]
    outer = [i for i in sites if not 0 < space.genes[i].block < last]
    candidate = space.dense
    for gene in [*rng.permutation(inner).tolist(), *rng.permutation(outer).tolist()]:
        if not any(c.violation(space.cost(candidate)) for c in constraints):
            break
        candidate = candidate.with_value(gene, 0)
    return space.repair(candidate, constraints, rng)


def scattered(space: Space, constraint: Constraint, count: int, seed: int) -> list[Candidate]:
    """Random candidates of nearly equal cost, all different: nothing of any of them can be raised within the bound.

    The first of a larger `count` are those of a smaller one. Raises InfeasibleError, and SettingError when there are
    fewer.
    """
    found: dict[Candidate, None] = {}
    for attempt in range(TRIES * count):
        rng = np.random.default_rng([seed, 11, attempt])
        drawn = space.repair(_drawn(space, rng), [constraint], rng)
        found.setdefault(_filled(space, drawn, constraint, rng))
        if len(found) == count:
            return list(found)
    raise SettingError(
        f"{count} different plans within {constraint.metric}={constraint.text} were asked for; only {len(found)} were "
        "found: ask for fewer plans or another ratio"
    )


def _drawn(space: Space, rng: np.random.Generator) -> Candidate:
    """Each gene near a common level of 0.2 to 1 of its options."""
    sizes = np.array([len(g.options) if isinstance(g, OptionGene) else 1 for g in space.genes])
    shares = np.clip(rng.normal(rng.uniform(0.2, 1.0), SPREAD, len(sizes)), 0.0, 1.0)
    return Candidate(tuple(int(v) for v in np.rint(shares * (sizes - 1))))


def _filled(
    space: Space, candidate: Candidate, constraint: Constraint, rng: np.random.Generator
) -> Candidate:
    """Genes raised one option at a time, in rounds of random order, until none fits."""
    grown = True
    while grown:
        grown = False
        for index in rng.permutation(len(space.genes)).tolist():
            gene, value = space.genes[index], candidate.indices()[index]
            if isinstance(gene, OptionGene) and value + 1 < len(gene.options):
                raised = candidate.with_value(index, value + 1)
                if constraint.violation(space.cost(raised)) == 0.0:
                    candidate, grown = raised, True
    return candidate
