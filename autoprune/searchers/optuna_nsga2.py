"""NSGA-II as Optuna has it: uniform crossover, redrawn genes, constrained domination (Deb et al. 2002)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from optuna.samplers import NSGAIISampler

from autoprune.searchers.checks import at_least, share
from autoprune.searchers.optuna_study import OptunaSearcher
from autoprune.searchers.problem import Problem

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler
    from optuna.study import Study
    from optuna.trial import FrozenTrial

    from autoprune.objective import Proposal


class OptunaNSGA2(OptunaSearcher):
    """Optuna's NSGA-II: crossover by single genes, without regard to their order in depth; any number of objectives.

    population: candidates a generation and an ask; windows: fitness windows an evaluation; crossover: share of
    offspring with two parents; swap: share of genes taken from the second; mutation: share of genes drawn anew, null
    for one gene a candidate; smallest: candidates below this share of the dense `params` are raised, since nobody
    wants them.
    """

    method = "optuna_nsga2"

    def __init__(
        self,
        problem: Problem,
        population: int = 64,
        windows: int = 4,
        crossover: float = 0.9,
        swap: float = 0.5,
        mutation: float | None = None,
        smallest: float = 0.3,
    ) -> None:
        at_least("population", population, 2)
        share("crossover", crossover)
        share("swap", swap)
        share("mutation", mutation, null=True)
        super().__init__(problem, population, windows, smallest)
        self._settings: dict[str, Any] = {
            "population_size": population,
            "crossover_prob": crossover,
            "swapping_prob": swap,
            "mutation_prob": mutation,
        }
        self._generation: dict[int, dict[str, Any]] = {}  # Optuna's note of each proposal's generation
        self._study: Study | None = None

    def sampler(self, seed: int) -> BaseSampler:
        """Optuna's."""
        return NSGAIISampler(seed=seed, **self._settings)

    def study(self) -> Study:
        """One for the whole search: generations are noted in its trials."""
        if self._study is None:
            self._study = self.open_study(self.problem.seed)
        return self._study

    def asked(self, study: Study, number: int, proposal: Proposal) -> None:
        """The candidate is of the generation that Optuna has put the trial into."""
        self._generation[proposal.id] = dict(study.get_trials(deepcopy=False)[number].system_attrs)

    def learn(self, trial: FrozenTrial, proposal: Proposal) -> None:
        """Told under its generation."""
        for name, value in self._generation.pop(proposal.id).items():
            trial.system_attrs.setdefault(name, value)
        self.study().add_trial(trial)
