"""NSGA-II through pymoo's ask and tell, with operators that know the depth order of the genes (Deb et al. 2002)."""

from __future__ import annotations

from typing import Any

from autoprune.searchers.genetic import Genetic


class NSGA2(Genetic):
    """Non-dominated sorting with crowding; integer genes; seeded with uniform allocations.

    population: candidates a generation; windows: fitness windows an evaluation; crossover: share of offspring that
    join the shallow part of one parent to the deep part of the other at one cut (depth-ordered one-point crossover,
    which keeps whole prefixes and so shares their computation); mutation: mean number of mutated sites, null for 2;
    smallest: candidates below this share of the dense `params` are raised, since nobody wants them;
    ahead: batches that may be out at once, each bred from what was told before it was asked for. Metrics in `log` are
    compared on a logarithmic scale, which matters for crowding only.
    """

    method = "nsga2"

    def algorithm(self, population: int, **settings: Any) -> Any:
        """pymoo's NSGA-II."""
        from pymoo.algorithms.moo.nsga2 import NSGA2 as PymooNSGA2

        return PymooNSGA2(pop_size=population, **settings)
