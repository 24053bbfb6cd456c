"""Efficient expert pruning (EEP, card A3): selects experts, then merges them, by mutation and crossover."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Array, Proposal, Result
from autoprune.searchers.checks import at_least, share
from autoprune.searchers.problem import Problem, step_rng
from autoprune.space import ArrayGene, Candidate

ACTIVE, REPLACE = 0.25, 0.15  # chances that a block changes, and that a row of it moves to an unused expert
CROSS, FIRST = 0.3, 0.6  # chances of crossover, and that it takes a step of the others
ENTRY, SIGMA, NORMALISE = (
    0.25,
    0.065,
    0.1,
)  # an entry's chance of noise, its size, the chance of rows that sum to one
MOVE = 0.5  # of the candidates of phase 2 that are no crossover, those whose rows move as in phase 1
WIDEST = 3.0  # octaves that the size of noise is raised by, at most
NEAR = 0.005  # parents are at most so much worse than the best
TRIES, KEPT, DIGITS = 50, 20, 6

Genome = Array  # [blocks, 2, rows, experts]; rows beyond those that a block keeps stay the identity's


class EEP:
    """Every block keeps as many experts as in the uniform plan at the budget; which, and mixed how, is searched.

    Matrices have distinct one-hot rows at first, then any. Unlike in the paper, noise falls on one row of an active
    block, its size is drawn for each candidate, rows go on moving to other experts while they are mixed, and crossover
    gives the best candidate rows by which others became better than their parents.

    initial: candidates to start from, the ladder's own order and random selections; evaluations: how many at most,
    fewer where the tokens pay for fewer; prune: the share of them that selects experts, the others merge; windows:
    fitness windows an evaluation; batch: candidates an ask.
    """

    single_target = True

    def __init__(
        self,
        problem: Problem,
        initial: int = 30,
        evaluations: int = 400,
        prune: float = 0.25,
        windows: int = 16,
        batch: int = 8,
    ) -> None:
        for name, value in (("initial", initial), ("evaluations", evaluations), ("batch", batch)):
            at_least(name, value, 1)
        share("prune", prune)
        self.problem, self.batch = problem, batch
        self._quality = problem.quality("eep")
        problem.bounded("eep")
        self._fidelity = problem.fidelity(windows, "search.windows")
        paid = evaluations if problem.tokens is None else problem.tokens // (windows * problem.window)
        self._most = max(1, min(evaluations, paid))
        self._pruning = round(prune * self._most)
        self._genes = [i for i, g in enumerate(problem.space.genes) if isinstance(g, ArrayGene)]
        if not self._genes:
            raise SettingError("search=eep merges experts: it needs space=[experts,merging]")
        self._arrays = [g for g in problem.space.genes if isinstance(g, ArrayGene)]
        seeds = problem.seeds or (problem.space.dense,)
        self._base = problem.space.repair(seeds[0], problem.constraints, step_rng(problem.seed, 0))
        plan, all_ = problem.space.decode(self._base), self._arrays[0].shape[1]
        self._kept = [int(plan.at(g.block, "ffn").get("experts", all_)) for g in self._arrays]
        self._found: list[tuple[float, int, Candidate]] = []
        self._parents: dict[Candidate, Candidate] = {}
        self._seen: set[Candidate] = set()
        self._asked, self._waiting, self._exhausted = 0, False, False
        self._first = [self._drawn(i) for i in range(initial)]

    @property
    def finished(self) -> bool:
        """True after the asked number of evaluations, or when no new candidate was found in many tries."""
        return not self._waiting and (self._asked >= self._most or self._exhausted)

    def finalists(self) -> list[Candidate]:
        """The best candidates, to be scored on selection."""
        return [c for *_, c in sorted(self._found)[:KEPT]]

    def ask(self, n: int) -> list[Proposal]:
        """Up to n new candidates, or as many as a batch, once the ones before were told."""
        if self._waiting or self.finished:
            return []
        count = min(n, self.batch, self._most - self._asked)
        chosen: list[Proposal] = []
        while len(chosen) < count and (candidate := self._new()) is not None:
            self._seen.add(candidate)
            chosen.append(Proposal(self._asked, candidate, self._fidelity))
            self._asked += 1
        self._exhausted = not chosen  # fewer than asked for may be all that is known before they are told
        self._waiting = bool(chosen)
        return chosen

    def tell(self, results: Sequence[Result]) -> None:
        """All that can be used joins the population."""
        self._waiting = False
        for result in results:
            if result.ok:
                value = self._quality.value(result.metrics)
                self._found.append((value, result.proposal.id, result.proposal.candidate))

    def _new(self) -> Candidate | None:
        while self._first:
            candidate = self._candidate(self._first.pop(0))
            if candidate not in self._seen:
                return candidate
        ranked = sorted(self._found)
        for attempt in range(TRIES if ranked else 0):
            rng = step_rng(self.problem.seed, 1 + self._asked * TRIES + attempt)
            joins = rng.random() < CROSS
            parent = ranked[0][2] if joins else _pick(ranked, rng)
            genome = self._joined(ranked, rng) if joins else self._changed(parent, rng)
            candidate = self._candidate(genome)
            if candidate not in self._seen:
                self._parents[candidate] = parent
                return candidate
        return None

    def _drawn(self, number: int) -> Genome:
        """The ladder's own order first, then distinct experts at random."""
        size = self._arrays[0].shape[1]
        genome = np.tile(np.eye(size), (len(self._arrays), 2, 1, 1))
        rng = np.random.default_rng([self.problem.seed, 5, number])
        for block, kept in enumerate(self._kept if number else ()):
            if kept < size:
                genome[block, :, :kept] = np.eye(size)[rng.permutation(size)[:kept]]
        return genome

    def _changed(self, parent: Candidate, rng: np.random.Generator) -> Genome:
        """Phase 1 moves rows to unused experts, phase 2 also mixes."""
        genome = self._genome(parent)
        active = np.flatnonzero(rng.random(len(genome)) < ACTIVE).tolist()
        if self._selecting or rng.random() < MOVE:
            self._select(genome, active, rng)
        else:
            self._mix(genome, active, rng)
        return genome

    @property
    def _selecting(self) -> bool:
        return self._asked < self._pruning

    def _select(self, genome: Genome, active: Sequence[int], rng: np.random.Generator) -> None:
        """Rows of some blocks move to experts that no row has most of, merge matrix and router map together."""
        for block in active:
            for row in range(self._kept[block]):
                first = genome[block, 0, : self._kept[block]].argmax(-1)
                unused = np.setdiff1d(np.arange(genome.shape[-1]), first)
                if len(unused) and rng.random() < REPLACE:
                    genome[block, :, row] = np.eye(genome.shape[-1])[int(rng.choice(unused))]

    def _mix(self, genome: Genome, active: Sequence[int], rng: np.random.Generator) -> None:
        """Noise on entries of a row of some blocks, all of one size."""
        sigma = SIGMA * 2.0 ** rng.uniform(-1.0, WIDEST)
        for block in (b for b in active if self._kept[b]):
            row = genome[block, :, int(rng.integers(self._kept[block]))]  # a view [2, experts]
            row += np.where(rng.random(row.shape) < ENTRY, rng.normal(size=row.shape) * sigma, 0.0)
            total = float(row[0].sum())
            if rng.random() < NORMALISE and abs(total) > SIGMA:
                row[0] /= total

    def _joined(self, ranked: Sequence[tuple[float, int, Candidate]], rng: np.random.Generator) -> Genome:
        """The best, with rows by which others became better than their parents, where it has the parents' rows."""
        values = {candidate: value for value, _, candidate in ranked}
        genome = self._genome(ranked[0][2])
        for value, _, candidate in ranked[1:]:
            parent = self._parents.get(candidate)
            if parent is None or value >= values[parent] or rng.random() >= FIRST:
                continue
            before, after = self._genome(parent), self._genome(candidate)
            for block, row in np.argwhere((before != after).any((1, 3))).tolist():
                if np.array_equal(genome[block, :, row], before[block, :, row]):
                    self._put(genome, after, block, row)
        return genome

    def _put(self, genome: Genome, other: Genome, block: int, row: int) -> None:
        """Another's row; while experts are selected, only one that no other row has."""
        kept = genome[block, 0, : self._kept[block]].sum(0)
        if not self._selecting or not (kept * other[block, 0, row]).any():
            genome[block, :, row] = other[block, :, row]

    def _genome(self, candidate: Candidate) -> Genome:
        return np.array([candidate.values[g] for g in self._genes]).reshape(-1, *self._arrays[0].shape)

    def _candidate(self, genome: Genome) -> Candidate:
        values = list(self._base.values)
        for gene, array, own in zip(self._genes, self._arrays, genome, strict=True):
            values[gene] = tuple(np.round(own, DIGITS).clip(array.low, array.high).ravel().tolist())
        return Candidate(tuple(values))


def _pick(ranked: Sequence[tuple[float, int, Candidate]], rng: np.random.Generator) -> Candidate:
    """One of those that are worse than the best by at most a share of its value."""
    bound = ranked[0][0] + NEAR * abs(ranked[0][0])
    return ranked[int(rng.integers(sum(value <= bound for value, *_ in ranked)))][2]
