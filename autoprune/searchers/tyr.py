"""Prune and search in turns: ladders rebuilt ever finer around the allocation found so far (Týr, card A1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

from autoprune.errors import SettingError
from autoprune.searchers.checks import at_least
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.problem import Problem
from autoprune.space import OptionGene

WIDEST = 32  # neurons: the hardware-friendly multiple of large models
GRID = 64  # steps that the full width must have at least


class Tyr(EvoPress):
    """Level-switch evolution in iterations, each on ladders rebuilt around what the one before found.

    iterations: how often ladders are built and searched, with equal shares of the tokens; step: between the options
    of the first iteration, as a share of the full site, halved by each later one; levels: options on either side of
    the found one; ffn_multiple: FFN widths are multiples of this, null for the largest of 32 … 1 that gives 64 widths
    (KV groups are whole); follow: from this iteration on, counted from 1, ladders bring the hidden states behind the
    found plan back towards the dense model's, null for never; offspring: children a generation; survivors: how many
    pass each stage, the last one becomes the parent; windows: fitness windows of each stage; swaps: a child makes
    min(U{1..swaps}, U{1..swaps}) switches, each lowering one site by an option and raising another of its kind;
    same_kind: false lets a switch trade options of equal cost between kinds, too, as evopress does;
    generations: how many an iteration has at most, null for as many as the tokens pay for.
    """

    method = "tyr"
    driver = "autoprune.run.rebuilding.RebuildingDriver"

    def __init__(
        self,
        problem: Problem,
        iterations: int = 4,
        step: float = 0.125,
        levels: int = 4,
        ffn_multiple: int | None = None,
        follow: int | None = None,
        offspring: int = 64,
        survivors: Sequence[int] = (8, 2, 1),
        windows: Sequence[int] = (1, 4, 16),
        swaps: int = 4,
        same_kind: bool = True,
        generations: int | None = None,
    ) -> None:
        super().__init__(problem, offspring, survivors, windows, swaps, generations)
        if not 0 < step <= 1:
            raise SettingError(f"search.step={step:g} must be above 0 and at most 1")
        at_least("iterations", iterations, 1)
        at_least("levels", levels, 1)
        at_least("ffn_multiple", ffn_multiple, 1, null=True)
        if follow is not None and not 1 <= follow <= iterations:
            raise SettingError(
                f"search.follow={follow} is not between 1 and search.iterations={iterations}, or null"
            )
        self.iterations = iterations
        self._step_share, self._levels, self._multiple, self._follow = step, levels, ffn_multiple, follow
        genes = [g for g in problem.space.genes if isinstance(g, OptionGene)]
        kinds = [(g.kind, g.setting) for g in genes]
        if same_kind:
            self._partners = [[j for j, other in enumerate(kinds) if other == kind] for kind in kinds]
        self._unequal = False  # published: level switches only

    def follows(self, iteration: int) -> bool:
        """Whether the ladders of an iteration, counted from 0, aim at the dense model's hidden states."""
        return self._follow is not None and iteration + 1 >= self._follow

    def around(self, gene: OptionGene, centre: float, iteration: int) -> tuple[int, ...]:
        """The options of a site in an iteration, counted from 0: steps up and down from `centre`.

        `gene` is the site in the run's own space: nothing is below its smallest option but zero, which latency tables
        price apart.
        """
        full, least = gene.options[-1], min((o for o in gene.options if o), default=0)
        unit = self._unit(full) if gene.setting == "width" else 1
        step = max(unit, _rounded(self._step_share * full / 2**iteration, unit))
        middle = full if centre >= full else _rounded(centre, unit)
        found = {min(max(middle + level * step, 0), full) for level in range(-self._levels, self._levels + 1)}
        return tuple(sorted(option for option in found if not 0 < option < least))

    def _unit(self, full: int) -> int:
        if self._multiple is not None:
            return self._multiple
        return max(1, min(WIDEST, 1 << int(math.log2(max(1, full // GRID)))))


def _rounded(value: float, unit: int) -> int:
    return int(value / unit + 0.5) * unit
