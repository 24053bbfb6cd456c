"""What an allocator says, and the candidate that it stands for at a budget."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

from autoprune.objective import Constraint
from autoprune.space import Candidate, OptionGene, Space
from autoprune.uniform import fill

HALVINGS = 24
UNIFORM = "uniform"  # the same share of every site; see autoprune/uniform.py

Allocation = Callable[[OptionGene, float], float]
"""The share of its full option that a gene should keep at a level of 0 to 1, never falling with the level."""


def allocated(space: Space, allocation: Allocation, constraint: Constraint) -> Candidate | None:
    """The candidate of the highest level within the constraint, filled from block 0 up; None when there is none.

    Genes that are no options stay as in the dense model.
    """

    def at(level: float) -> Candidate:
        pairs = zip(space.genes, space.dense.values, strict=True)
        return Candidate(
            tuple(_nearest(g, allocation, level) if isinstance(g, OptionGene) else v for g, v in pairs)
        )

    def fits(candidate: Candidate) -> bool:
        return constraint.violation(space.cost(candidate)) == 0.0

    low, high = 0.0, 1.0
    if not fits(at(low)):
        return None
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(at(middle)) else (low, middle)
    return fill(space, at(low), constraint)


def _nearest(gene: OptionGene, allocation: Allocation, level: float) -> int:
    """The index of the option whose share is nearest, of equally near ones the larger."""
    wanted = allocation(gene, level) * gene.options[-1]
    above = min(bisect_right(gene.options, wanted), len(gene.options) - 1)
    below = max(above - 1, 0)
    return above if gene.options[above] - wanted <= wanted - gene.options[below] else below
