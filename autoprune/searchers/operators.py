"""Variation for pymoo: depth-ordered crossover, step mutation, repair by the space."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pymoo.core.crossover import Crossover
from pymoo.core.mutation import Mutation
from pymoo.core.repair import Repair

Rows = NDArray[np.int64]


class DepthCrossover(Crossover):  # type: ignore[misc]
    """One cut in depth order: the shallow genes of one parent with the deep genes of the other."""

    def __init__(self, prob: float) -> None:
        super().__init__(n_parents=2, n_offsprings=2, prob=prob)

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:  # noqa: N803
        _, matings, genes = X.shape
        children = X.copy()
        for mating in range(matings):
            cut = int(random_state.integers(1, genes)) if genes > 1 else 0
            children[0, mating, cut:] = X[1, mating, cut:]
            children[1, mating, cut:] = X[0, mating, cut:]
        return children


class StepMutation(Mutation):  # type: ignore[misc]
    """Moves a few genes: single steps, switches that lower one and raise another, exchanges, rare fresh draws."""

    def __init__(self, mean: float) -> None:
        super().__init__(prob=1.0)
        self._mean = mean

    def _do(self, problem: Any, X: Any, *args: Any, random_state: Any = None, **kwargs: Any) -> Any:  # noqa: N803
        mutated = X.copy()
        for row in mutated:
            for _ in range(int(random_state.poisson(self._mean))):
                self._move(row, problem.xu, random_state)
        return mutated

    def _move(self, row: Rows, upper: Rows, rng: Any) -> None:
        gene, other = (int(rng.integers(len(row))) for _ in range(2))
        draw = rng.random()
        if draw < 0.1:
            row[gene] = rng.integers(0, upper[gene] + 1)
        elif draw < 0.35 and upper[gene] == upper[other]:
            # trade places, as depth pruning does with whole sublayers
            row[gene], row[other] = row[other], row[gene]
        else:
            step = 1 if rng.random() < 0.5 else -1
            row[gene] = np.clip(row[gene] + step, 0, upper[gene])
            if draw < 0.75:
                row[other] = np.clip(row[other] - step, 0, upper[other])


class SpaceRepair(Repair):  # type: ignore[misc]
    """Every row through the space's own bounded repair."""

    def __init__(self, repair: Callable[[Rows], list[int]]) -> None:
        super().__init__()
        self._repair = repair

    def _do(self, problem: Any, X: Any, **kwargs: Any) -> Any:  # noqa: N803
        return np.array([self._repair(row) for row in X.astype(int)])


def sound_first(pop: Any, pairs: Rows, random_state: Any, **kwargs: Any) -> Rows:
    """Of each pair who did not fail, else either: pymoo's own draws between two failures without the seed."""
    failed = np.array([[pop[i].CV[0] > 0 for i in pair] for pair in pairs])
    rows = zip(pairs, failed, strict=True)
    won = [random_state.choice(pair) if bad[0] == bad[1] else pair[int(bad[0])] for pair, bad in rows]
    return np.array(won, dtype=np.int64)[:, None]
