"""A model whose every plan has been measured: what a searcher finds can be compared with what there is.

The last four blocks of the built-in docs-llama, the first eight left whole: 4 KV-group genes and 4 FFN genes of three
options each, 6,561 plans. `kl` is to the dense model on 16 windows of 64 tokens of the built-in corpus's *fitness*
split, on refit ladders. `autoprune bench enumerate` makes the file again; its `about` says from what.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from typing import Any

import numpy as np

from autoprune.objective import Array, Proposal, Result, Status, non_dominated
from autoprune.shape import AnalyticCosts, Shape
from autoprune.space import Candidate, OptionGene, Plan, Space

FILE = "enumerated.npz"
METRIC = "params"


def genes(blocks: int, kv_groups: Sequence[int], widths: Sequence[int]) -> tuple[OptionGene, ...]:
    """In depth order: the KV groups and the FFN width of each block."""
    return tuple(
        gene
        for block in range(blocks)
        for gene in (
            OptionGene(block, "attention", "kv_groups", tuple(kv_groups)),
            OptionGene(block, "ffn", "width", tuple(widths)),
        )
    )


@dataclass(frozen=True)
class Enumerated:
    """`kl[plan, window]` in nats; a plan's row is its option indices read as one number, the last gene fastest."""

    kl: Array
    about: dict[str, Any]

    @staticmethod
    def load() -> Enumerated:
        """The measured case that comes with the package."""
        with (
            (files("autoprune.searchers") / FILE).open("rb") as file,
            np.load(file, allow_pickle=False) as data,
        ):
            return Enumerated(data["kl"].astype(np.float64), json.loads(str(data["about"])))

    @cached_property
    def genes(self) -> tuple[OptionGene, ...]:
        """The search variables."""
        return genes(self.shape.blocks, self.about["kv_groups"], self.about["widths"])

    @cached_property
    def shape(self) -> Shape:
        """Sizes of the four blocks."""
        return Shape(**{**self.about["shape"], "windows": ()})

    @property
    def costs(self) -> AnalyticCosts:
        """Prices the four blocks."""
        return AnalyticCosts(self.shape, int(self.about["window"]))

    @property
    def full(self) -> Plan:
        """The plan of the four blocks that keeps everything."""
        return Plan.of([(self.shape.kv_groups, self.shape.ffn)] * self.shape.blocks)

    @property
    def windows(self) -> int:
        """Windows that every plan was measured on."""
        return int(self.kl.shape[1])

    @cached_property
    def truth(self) -> Array:
        """KL of each plan over all windows."""
        return np.asarray(self.kl.mean(axis=1))

    def row(self, candidate: Candidate) -> int:
        """Where a candidate's values stand."""
        return int(np.ravel_multi_index(candidate.indices(), [len(g.options) for g in self.genes]))

    def candidate(self, row: int) -> Candidate:
        """The candidate of a row."""
        found = np.unravel_index(row, [len(g.options) for g in self.genes])
        return Candidate(tuple(int(i) for i in found))

    def evaluator(self, space: Space) -> EnumeratedLoss:
        """Answers proposals from the table."""
        return EnumeratedLoss(self, space)

    def front(self, space: Space) -> list[Candidate]:
        """The true front of KL and parameters, from small to large."""
        every = [self.candidate(row) for row in range(len(self.kl))]
        sizes = [space.cost(c)[METRIC] for c in every]
        return [every[i] for i in non_dominated(list(zip(sizes, self.truth.tolist(), strict=True)))]


@dataclass(frozen=True)
class EnumeratedLoss:
    """What an executor would answer, looked up."""

    case: Enumerated
    space: Space

    def __call__(self, proposal: Proposal) -> Result:
        """KL on the proposal's windows and all costs."""
        start, stop = proposal.fidelity.windows
        values = self.case.kl[self.case.row(proposal.candidate), start:stop]
        metrics = {"kl": float(values.mean()), **self.space.cost(proposal.candidate)}
        return Result(proposal, Status.OK, metrics, {"kl": values.copy()})
