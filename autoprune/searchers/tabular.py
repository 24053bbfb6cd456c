"""Losses over option genes that need no model: quick, exact, and their best plan at any budget is known.

additive: every gene for itself, as dp believes; pairwise: neighbours in depth also lose together; deceptive: some
blocks lose little as a whole but much by either half, so single moves mislead; noisy: pairwise, and every window has
its own opinion of every gene, which cancels over all windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from autoprune.errors import SettingError, nearest
from autoprune.objective import Array, Constraint, Proposal, Result, Status
from autoprune.searchers.knapsack import non_beaten
from autoprune.space import Candidate, OptionGene, Space

WINDOWS = 16
COMMON, OWN = 0.3, 0.3  # standard deviation of a window's opinion: of all genes, of each

Pairs = Callable[[np.random.Generator, list[Array]], list[Array]]


class Tabular:
    """`own[gene][option]` plus `pair[gene][option, next option]` over neighbours in depth, called `kl`."""

    def __init__(self, space: Space, seed: int = 0, kind: str = "pairwise") -> None:
        if kind not in PAIRS:
            raise SettingError(f"a tabular problem {kind!r} is unknown" + nearest(kind, PAIRS))
        rng = np.random.default_rng(seed)
        self._space = space
        lost = [_lost(g) for g in space.genes]
        weights = rng.lognormal(0.0, 1.2, len(lost))
        self._own = [w * row**2 for w, row in zip(weights, lost, strict=True)]
        self._pair = PAIRS[kind](rng, lost)
        if kind == "deceptive":
            self._own = [0.3 * row for row in self._own]
        opinions = COMMON * rng.standard_normal((WINDOWS, 1)) + OWN * rng.standard_normal(
            (WINDOWS, len(lost))
        )
        self._opinions = (opinions - opinions.mean(axis=0)) * (kind == "noisy")

    def loss(self, candidate: Candidate) -> float:
        """The mean over all windows: 0 for the dense candidate, larger where more is gone."""
        return float(self._parts(candidate).sum() + self._pairs(candidate))

    def __call__(self, proposal: Proposal) -> Result:
        """A usable result with the loss on the proposal's windows as `kl` and `nll`, and all costs."""
        candidate = proposal.candidate
        rows = self._opinions[np.arange(*proposal.fidelity.windows) % WINDOWS]
        values = self.loss(candidate) + rows @ self._parts(candidate)
        loss = float(values.mean())
        metrics = {"kl": loss, "nll": loss, **self._space.cost(candidate)}
        return Result(proposal, Status.OK, metrics, {"kl": values})

    def optimum(self, constraint: Constraint) -> float:
        """The least loss within one additive bound, exactly: dynamic programming along the depth."""
        table = self._space.cost_table(constraint.metric)
        assert table is not None
        room = constraint.bound + 1e-9 * max(1.0, abs(constraint.bound)) - table.base
        fronts = [(np.zeros(1), np.zeros(1))]  # of each option of the last gene: costs and losses
        pair: Array = np.zeros((1, len(table.entries[0])))
        for gene, row in enumerate(table.entries):
            reached = []
            for option, cost in enumerate(row):
                costs = np.concatenate([c + cost for c, _ in fronts])
                losses = [v + self._own[gene][option] + pair[i, option] for i, (_, v) in enumerate(fronts)]
                joined = np.concatenate(losses)
                kept = non_beaten(costs, joined, room)
                reached.append((costs[kept], joined[kept]))
            fronts = reached
            pair = self._pair[gene] if gene < len(self._pair) else pair
        return float(min(v.min() for _, v in fronts if len(v)))

    def _parts(self, candidate: Candidate) -> Array:
        return np.array([row[v] for row, v in zip(self._own, candidate.indices(), strict=True)])

    def _pairs(self, candidate: Candidate) -> float:
        values = candidate.indices()
        return float(sum(m[a, b] for m, a, b in zip(self._pair, values, values[1:], strict=False)))


def _lost(gene: Any) -> Array:
    assert isinstance(gene, OptionGene)
    last = max(1, len(gene.options) - 1)
    return np.asarray(1 - np.arange(len(gene.options)) / last)


def _none(rng: np.random.Generator, lost: list[Array]) -> list[Array]:
    return [np.zeros((len(a), len(b))) for a, b in zip(lost, lost[1:], strict=False)]


def _products(rng: np.random.Generator, lost: list[Array]) -> list[Array]:
    weights = rng.uniform(0.0, 0.3, max(0, len(lost) - 1))
    return [w * np.outer(a, b) for w, a, b in zip(weights, lost, lost[1:], strict=False)]


def _traps(rng: np.random.Generator, lost: list[Array]) -> list[Array]:
    """Every second pair, a block's two halves, may lose by being unlike."""
    found = _none(rng, lost)
    for number in range(0, len(found), 2):
        height = rng.uniform(1.0, 3.0) * (rng.random() < 0.6)
        found[number] = height * np.abs(lost[number][:, None] - lost[number + 1][None, :])
    return found


PAIRS: dict[str, Pairs] = {"additive": _none, "pairwise": _products, "deceptive": _traps, "noisy": _products}
