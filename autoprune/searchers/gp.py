"""Bayesian optimisation by Gaussian processes through Optuna (log expected improvement, Ament et al. 2023)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from optuna.samplers import GPSampler

from autoprune.errors import SettingError
from autoprune.searchers.checks import at_least
from autoprune.searchers.optuna_study import MemorylessSearcher
from autoprune.searchers.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

MOST = 4  # objectives: beyond, Optuna's division of the objective space into boxes takes too long


class GP(MemorylessSearcher):
    """Optuna's Gaussian processes, one for each objective and constraint: few evaluations, seconds of thought for each.

    batch: candidates an ask; windows: fitness windows an evaluation; startup: random candidates, seeds among them,
    before it models; smallest: candidates below this share of the dense `params` are raised, since nobody wants
    them. At most four objectives.
    """

    method = "gp"

    def __init__(
        self,
        problem: Problem,
        batch: int = 8,
        windows: int = 4,
        startup: int = 32,
        smallest: float = 0.3,
    ) -> None:
        if len(problem.objectives) > MOST:
            names = ", ".join(o.metric for o in problem.objectives)
            raise SettingError(f"search=gp takes at most {MOST} objectives; objectives=[{names}]")
        at_least("startup", startup, 2)
        super().__init__(problem, batch, windows, smallest)
        self._startup = startup

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's; while it fits and searches, torch is kept to one thread by Optuna itself."""
        return GPSampler(seed=seed, n_startup_trials=self._startup, warn_independent_sampling=False)
