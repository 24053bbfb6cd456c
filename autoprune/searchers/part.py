"""A sub-network as a space of its own: some consecutive blocks' genes, all others dense."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Constraint
from autoprune.space import Candidate, CostTable, Gene, Plan, Space, digest


@dataclass(frozen=True)
class Part:
    """The genes of `indices` in a space; costs and plans are the whole model's."""

    of: Space
    indices: tuple[int, ...]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """The part's, in depth order."""
        return tuple(self.of.genes[g] for g in self.indices)

    @cached_property
    def dense(self) -> Candidate:
        """The part's genes of the dense candidate."""
        return self.within(self.of.dense)

    def whole(self, candidate: Candidate) -> Candidate:
        """The whole model's candidate, dense elsewhere."""
        values = list(self.of.dense.values)
        for gene, value in zip(self.indices, candidate.values, strict=True):
            values[gene] = value
        return Candidate(tuple(values))

    def within(self, candidate: Candidate) -> Candidate:
        """The part's genes of a whole model's candidate."""
        return Candidate(tuple(candidate.values[g] for g in self.indices))

    def decode(self, candidate: Candidate) -> Plan:
        """The whole model's plan."""
        return self.of.decode(self.whole(candidate))

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        """The whole model's costs."""
        return self.of.cost(self.whole(candidate))

    def cost_table(self, metric: str) -> CostTable | None:
        """The part's rows; what is dense elsewhere counts as base."""
        table = self.of.cost_table(metric)
        if table is None:
            return None
        rows = tuple(table.entries[g] for g in self.indices)
        return CostTable(metric, table.dense - sum(row[-1] for row in rows), rows)

    def local_table(self, metric: str, around: Candidate) -> CostTable:
        """The part's rows of the whole model's table around a candidate of the part."""
        whole = self.whole(around)
        table = self.of.local_table(metric, whole)
        rows = tuple(table.entries[g] for g in self.indices)
        inside = sum(row[i] for row, i in zip(rows, around.indices(), strict=True))
        return CostTable(metric, table.total(whole.indices()) - inside, rows)

    def repair(
        self, candidate: Candidate, constraints: Sequence[Constraint], rng: np.random.Generator
    ) -> Candidate:
        """Nothing to mend without constraints; those of the whole model are not a part's to meet."""
        if constraints:
            raise SettingError("a sub-network is searched without constraints")
        return candidate

    def digest(self) -> str:
        """Identifies space and part."""
        return digest(self.of.digest(), self.indices)


def divided(space: Space, count: int) -> tuple[Part, ...]:
    """The space cut into parts of consecutive blocks, as equal as can be; raises SettingError for too many."""
    blocks = sorted({g.block for g in space.genes})
    if not 1 <= count <= len(blocks):
        raise SettingError(f"search.parts={count} is not between 1 and the {len(blocks)} blocks")
    groups = [set(chunk.tolist()) for chunk in np.array_split(blocks, count)]
    return tuple(Part(space, tuple(i for i, g in enumerate(space.genes) if g.block in b)) for b in groups)
