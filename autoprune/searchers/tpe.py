"""Tree-structured Parzen estimators through Optuna (Bergstra et al. 2011; several objectives: Ozaki et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.samplers import TPESampler

from autoprune.searchers.checks import at_least
from autoprune.searchers.optuna_study import MemorylessSearcher
from autoprune.searchers.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler


class TPE(MemorylessSearcher):
    """Optuna's TPE: samples around what was good, away from what was bad; any number of objectives.

    batch: candidates an ask; windows: fitness windows an evaluation; startup: random candidates, seeds among them,
    before it models; candidates: samples that a suggestion is the best of; multivariate: whether genes are modelled
    together, null for only with a single objective; smallest: candidates below this share of the dense `params` are
    raised, since nobody wants them.
    """

    method = "tpe"

    def __init__(
        self,
        problem: Problem,
        batch: int = 16,
        windows: int = 4,
        startup: int = 10,
        candidates: int = 24,
        multivariate: bool | None = True,
        smallest: float = 0.3,
    ) -> None:
        for name, value, least in (("startup", startup, 0), ("candidates", candidates, 1)):
            at_least(name, value, least)
        super().__init__(problem, batch, windows, smallest)
        self._startup, self._candidates, self._multivariate = startup, candidates, multivariate

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's."""
        return TPESampler(
            seed=seed,
            n_startup_trials=self._startup,
            n_ei_candidates=self._candidates,
            multivariate=self._multivariate,
        )
