"""The uniform baseline: the same fraction of every site, as the user would set it by hand."""

from __future__ import annotations

import itertools
import math
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence

from autoprune.objective import Constraint
from autoprune.space import Candidate, OptionGene, Space, dense_costs

COMBINATIONS = 4096  # of options between the kinds of sites
SPLITS = 3  # how many divisions between the kinds of sites are tried


def uniform_candidates(
    space: Space, ratio: float, metric: str = "params", changes: Callable[[str], bool] = lambda setting: True
) -> list[Candidate]:
    """Up to three uniform candidates with the largest cost <= ratio x dense, closest to equal fractions first.

    Every kind of site keeps one option in all blocks; what the budget leaves over is filled from block 0 up, one
    option a site. The best of them on the selection split is `uniform@ratio`. Empty when nothing uniform fits.
    `changes` says of which settings: the others stay as they are in the dense model.
    """
    limit = Constraint(metric, ratio * dense_costs(space)[metric])
    groups = [g for g in _groups(space) if changes(space.genes[g[0]].setting)]
    if not groups:
        return []
    found = []
    for head in _heads(space, groups):
        last = _largest(space, groups, head, limit)
        if last is not None:
            levels = (*head, last)
            found.append((_imbalance(space, groups, levels), levels))
    picked = [levels for _, levels in sorted(found)[:SPLITS]]
    return [fill(space, _at(space, groups, levels), limit) for levels in picked]


def _heads(space: Space, groups: Sequence[Sequence[int]]) -> Iterable[tuple[int, ...]]:
    """Options of all groups but the last: every combination or, when these are many, equal fractions."""
    sizes = [len(_options(space, g)) for g in groups]
    if math.prod(sizes[:-1]) <= COMBINATIONS:
        return itertools.product(*(range(n) for n in sizes[:-1]))
    shares = [[o / max(1, _options(space, g)[-1]) for o in _options(space, g)] for g in groups]
    fractions = sorted({s for row in shares for s in row})
    return dict.fromkeys(tuple(max(0, bisect(row, f) - 1) for row in shares[:-1]) for f in fractions)


def _groups(space: Space) -> list[list[int]]:
    """Gene indices by kind of site, in order of first appearance."""
    groups: dict[tuple[str, str], list[int]] = {}
    for index, gene in enumerate(space.genes):
        if isinstance(gene, OptionGene):
            groups.setdefault((gene.kind, gene.setting), []).append(index)
    return list(groups.values())


def _options(space: Space, group: Sequence[int]) -> tuple[int, ...]:
    gene = space.genes[group[0]]
    assert isinstance(gene, OptionGene)
    return gene.options


def _at(space: Space, groups: Sequence[Sequence[int]], levels: Sequence[int]) -> Candidate:
    values = list(space.dense.values)
    for group, level in zip(groups, levels, strict=True):
        for gene in group:
            values[gene] = level
    return Candidate(tuple(values))


def _fits(space: Space, candidate: Candidate, limit: Constraint) -> bool:
    return limit.violation(space.cost(candidate)) == 0.0


def _largest(
    space: Space, groups: Sequence[Sequence[int]], head: Sequence[int], limit: Constraint
) -> int | None:
    for level in reversed(range(len(_options(space, groups[-1])))):
        if _fits(space, _at(space, groups, (*head, level)), limit):
            return level
    return None


def _imbalance(space: Space, groups: Sequence[Sequence[int]], levels: Sequence[int]) -> float:
    shares = [
        _options(space, g)[level] / max(1, _options(space, g)[-1])
        for g, level in zip(groups, levels, strict=True)
    ]
    return max(shares) - min(shares)


def fill(space: Space, candidate: Candidate, limit: Constraint) -> Candidate:
    """The candidate with what the budget leaves over spent from block 0 up, one option a site."""
    for index, gene in enumerate(space.genes):
        value = candidate.values[index]
        if isinstance(gene, OptionGene) and isinstance(value, int) and value + 1 < len(gene.options):
            raised = candidate.with_value(index, value + 1)
            candidate = raised if _fits(space, raised, limit) else candidate
    return candidate
