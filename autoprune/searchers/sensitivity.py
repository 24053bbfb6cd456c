"""What each gene costs in quality by itself: the single-gene variations of a candidate, and the table they give."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.objective import Array, Objective, Result
from autoprune.space import Candidate

FAILED = float("inf")


@dataclass(frozen=True)
class Variation:
    """The base candidate with one gene at another option."""

    gene: int
    option: int
    candidate: Candidate


def variations(
    base: Candidate, sizes: Sequence[int], allowed: Sequence[Sequence[int]] | None = None
) -> list[Variation]:
    """Every (gene, option) alone, in gene and option order; `allowed` names the options of interest of each gene.

    `sizes` are the numbers of options. Plans that share a prefix stand together, so their computation is shared.
    """
    values = base.indices()
    options = [range(size) for size in sizes] if allowed is None else [sorted(set(row)) for row in allowed]
    return [
        Variation(gene, option, base.with_value(gene, option))
        for gene, row in enumerate(options)
        for option in row
        if option != values[gene]
    ]


def changes(
    base: Result, varied: Sequence[Variation], results: Sequence[Result], objective: Objective
) -> dict[tuple[int, int], float]:
    """By how much each variation's objective exceeds the base's, by (gene, option); infinity where it failed.

    In the metric's unit (nats for `kl`). Results must be on the base's windows, for then their noise cancels; raises
    ValueError when one is not, or when the base itself failed.
    """
    if not base.ok or any(r.proposal.fidelity != base.proposal.fidelity for r in results):
        raise ValueError("variations are compared with a usable result of their base on the same windows")
    start = objective.value(base.metrics)
    pairs = zip(varied, results, strict=True)
    return {(v.gene, v.option): objective.value(r.metrics) - start if r.ok else FAILED for v, r in pairs}


def effects(base: Candidate, sizes: Sequence[int], measured: Mapping[tuple[int, int], float]) -> list[Array]:
    """The additive table: for each gene one effect an option, 0 at the base's.

    An option that was not measured lies on the line, in option order, between its nearest measured neighbours (the
    base's option is one of them). Infinity stands for what failed, for what lies next to a failure, and for
    what lies beyond the outermost measured option: effects are never extrapolated, dropping to zero least of all.
    """
    rows = []
    for gene, (size, at) in enumerate(zip(sizes, base.indices(), strict=True)):
        known = {option: measured[gene, option] for option in range(size) if (gene, option) in measured}
        known[at] = 0.0
        rows.append(_row(size, known))
    return rows


def additive(table: Sequence[Array], candidate: Candidate) -> float:
    """The sum of a candidate's effects: it ranks candidates well and overstates or understates their size."""
    return float(sum(row[value] for row, value in zip(table, candidate.indices(), strict=True)))


def _row(size: int, known: Mapping[int, float]) -> Array:
    options = np.array(sorted(known))
    values = np.array([known[o] for o in options])
    with np.errstate(invalid="ignore"):  # infinity less infinity
        row: Array = np.interp(np.arange(size), options, values, left=FAILED, right=FAILED)
    row[options] = values
    row[np.isnan(row)] = FAILED
    return row
