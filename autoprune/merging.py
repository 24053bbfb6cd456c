"""A space with array genes: how the experts that a block keeps are made of all it had (EEP, card A3)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoprune.errors import SpaceError
from autoprune.objective import Constraint
from autoprune.space import ArrayGene, Candidate, CostTable, Gene, Plan, Space, SublayerPlan, digest

MERGE = "merge"
"""The plan setting: JSON of [2, kept, experts], merge matrix and router map, by the ladder's order of experts."""


def identity(gene: ArrayGene) -> tuple[float, ...]:
    """The value that keeps experts as they are, the first ones where fewer are kept."""
    return tuple(np.tile(np.eye(gene.shape[1]), (2, 1, 1)).ravel().tolist())


@dataclass(frozen=True)
class MergedSpace:
    """The option genes of a space, and behind them array genes [2, experts, experts], one a block.

    Of both matrices the first rows count, as many as experts are kept: new expert i is sum_j M_ij W_j, its router logit
    sum_j R_ij times the old ones. Costs are those of the options.
    """

    of: Space
    arrays: tuple[ArrayGene, ...]

    @property
    def genes(self) -> tuple[Gene, ...]:
        """Option genes, then array genes."""
        return (*self.of.genes, *self.arrays)

    @cached_property
    def dense(self) -> Candidate:
        """That of the options, no expert merged."""
        return Candidate((*self.of.dense.values, *map(identity, self.arrays)))

    def decode(self, candidate: Candidate) -> Plan:
        """The plan of a candidate; one whose rows are the identity's says nothing of merging."""
        sublayers = list(self.of.decode(self._options(candidate)).sublayers)
        for gene, value in zip(self.arrays, candidate.values[len(self.of.genes) :], strict=True):
            at = 2 * gene.block + 1
            text = None if isinstance(value, int) else _text(gene, value, sublayers[at])
            if text is not None:
                sublayers[at] = SublayerPlan.of("ffn", **dict(sublayers[at].settings), **{MERGE: text})
        return Plan(tuple(sublayers))

    def cost(self, candidate: Candidate) -> Mapping[str, float]:
        """Those of the options."""
        return self.of.cost(self._options(candidate))

    def cost_table(self, metric: str) -> CostTable | None:
        """None: a table has entries for options only."""
        return None

    def local_table(self, metric: str, around: Candidate) -> CostTable:
        """None of this space; raises SpaceError."""
        raise SpaceError(f"{metric}: a space with array genes has no cost table")

    def repair(
        self, candidate: Candidate, constraints: Sequence[Constraint], rng: np.random.Generator
    ) -> Candidate:
        """Options as their space repairs them, arrays as they are."""
        options = self.of.repair(self._options(candidate), constraints, rng)
        return Candidate((*options.values, *candidate.values[len(self.of.genes) :]))

    def digest(self) -> str:
        """Identifies options and arrays."""
        return digest(self.of.digest(), [(g.name, g.shape, g.low, g.high) for g in self.arrays])

    def _options(self, candidate: Candidate) -> Candidate:
        if len(candidate.values) != len(self.genes):
            raise SpaceError(
                f"the candidate has {len(candidate.values)} values, the space {len(self.genes)} genes"
            )
        return Candidate(candidate.values[: len(self.of.genes)])


def _text(gene: ArrayGene, value: tuple[float, ...], plan: SublayerPlan) -> str | None:
    """The rows of kept experts; None where they are the identity's, or nothing is kept."""
    experts = gene.shape[1]
    kept = int(plan.get("experts", experts))
    if len(value) != int(np.prod(gene.shape)) or not all(gene.low <= v <= gene.high for v in value):
        raise SpaceError(f"{gene.name}: {gene.shape} values between {gene.low} and {gene.high} are needed")
    rows = np.array(value).reshape(gene.shape)[:, :kept]
    if plan.gone or (rows == np.eye(experts)[:kept]).all():
        return None
    return json.dumps(rows.tolist(), separators=(",", ":"))
