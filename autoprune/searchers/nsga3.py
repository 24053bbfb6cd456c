"""NSGA-III through pymoo: NSGA-II's variation, survival by reference directions (Deb and Jain 2014)."""

from __future__ import annotations

from math import comb
from typing import Any

from autoprune.errors import SettingError
from autoprune.searchers.genetic import Genetic


class NSGA3(Genetic):
    """Non-dominated sorting with reference directions: even fronts for three objectives and more; else as nsga2.

    population: candidates a generation, and at most as many evenly spread (Das-Dennis) directions; windows: fitness
    windows an evaluation; crossover: share of offspring that join the shallow part of one parent to the deep part of
    the other at one cut; mutation: mean number of mutated sites, null for 2; smallest: candidates below this
    share of the dense `params` are raised, since nobody wants them; ahead: batches that may be out at once. Metrics in
    `log` are compared on a logarithmic scale.
    """

    method = "nsga3"

    def algorithm(self, population: int, **settings: Any) -> Any:
        """pymoo's NSGA-III."""
        from pymoo.algorithms.moo.nsga3 import NSGA3 as PymooNSGA3
        from pymoo.operators.selection.tournament import TournamentSelection
        from pymoo.util.ref_dirs import get_reference_directions

        from autoprune.searchers.operators import sound_first

        objectives = len(self.problem.objectives)
        if population < objectives:
            raise SettingError(f"search.population={population} must be at least the {objectives} objectives")
        parts = divisions(objectives, population)
        directions = get_reference_directions("das-dennis", objectives, n_partitions=parts)
        selection = TournamentSelection(func_comp=sound_first)
        return PymooNSGA3(ref_dirs=directions, pop_size=population, selection=selection, **settings)


def divisions(objectives: int, most: int) -> int:
    """Into how many parts each axis may be cut so that the grid of directions has at most `most` points."""
    parts = 1
    while objectives > 1 and comb(parts + objectives, objectives - 1) <= most:
        parts += 1
    return parts
