"""Plans that no search has found: `uniform@r` and what the allocators say, by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from autoprune.allocation import UNIFORM, Allocation, allocated
from autoprune.cache import Cache
from autoprune.data import Windows
from autoprune.errors import SettingError
from autoprune.models.base import Adapter
from autoprune.objective import Constraint
from autoprune.pruning.allocators import ALLOCATORS, usual_seeds
from autoprune.pruning.allocators.base import Ground
from autoprune.pruning.masks.experts import masks_experts
from autoprune.pruning.masks.statistics import Statistics, statistics_folder
from autoprune.space import Candidate, OptionGene, Space, dense_costs
from autoprune.sublayers import SpacePart
from autoprune.uniform import uniform_candidates

Named = Callable[[str, str], Allocation]  # allocator, setting that names it


@dataclass(frozen=True)
class Baselines:
    """The allocators of a model and of the space that these parts make, each asked once."""

    adapter: Adapter
    model_digest: str
    windows: Windows  # of *calibration*
    sequences: int
    space_parts: tuple[SpacePart, ...]
    cache: Cache
    _asked: dict[str, Allocation] = field(default_factory=dict, init=False, repr=False, compare=False)

    def named(self, name: str, setting: str) -> Allocation:
        """What an allocator says; SettingError, in the words of the setting, where it does not fit."""
        if name not in self._asked:
            try:
                self._asked[name] = ALLOCATORS[name](self._ground)
            except SettingError as error:
                raise SettingError(f"{setting}: {error}") from error
        return self._asked[name]

    def seeds(self, names: Sequence[str]) -> list[Allocation]:
        """What searches may start from: the usual ones, and those of the names."""
        wanted = [self.named(name, "baselines") for name in names if name != UNIFORM]
        return [*usual_seeds(self._ground), *wanted]

    @property
    def _ground(self) -> Ground:
        genes = [g for part in self.space_parts for g in part.genes(self.adapter.shape)]
        settings = {g.setting for g in genes if isinstance(g, OptionGene) and len(g.options) > 1}
        return Ground(self.adapter, self._statistics, frozenset(settings))

    def _statistics(self) -> Statistics:
        given = self.adapter, self.model_digest, self.windows, self.sequences, self.cache
        return Statistics(statistics_folder(*given, experts=masks_experts(self._ground.settings)))


def baseline_candidates(
    space: Space, name: str, ratio: float, metric: str, named: Named | None, setting: str = "baselines"
) -> list[Candidate]:
    """The candidates of `NAME@RATIO`, of which the best on *selection* counts; empty when none is that small."""
    if name == UNIFORM:
        return uniform_candidates(space, ratio, metric)
    assert named is not None, "allocators ask the model"
    limit = Constraint(metric, ratio * dense_costs(space)[metric])
    found = allocated(space, named(name, setting), limit)
    return [] if found is None else [found]
