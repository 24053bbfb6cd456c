"""Rounds at budgets: a table, champions, and contenders drawn from one model that meet them in paired races."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from autoprune.errors import SettingError
from autoprune.objective import Array, Result
from autoprune.searchers.anchors import PATIENCE, Anchor, Limits, budgets
from autoprune.searchers.checks import at_least
from autoprune.searchers.problem import Problem, step_rng
from autoprune.searchers.proposals import step_values
from autoprune.searchers.race import Belief, Board, Rules, Windows, estimate, race
from autoprune.searchers.script import Script, Scripted, Trial
from autoprune.searchers.sensitivity import changes, effects, variations
from autoprune.searchers.surrogate import Posterior, Spread, StepModel
from autoprune.space import Candidate

LOG = ("kl",)  # metrics that shrink towards 0: their gaps are logarithms of ratios
OVERSTATED = 0.5  # a single-gene effect of the table is twice what the same step does in a pruned model
PRIOR = (
    0.4  # sd of a step's effect beyond what the table explains, in standard deviations of a gap on one window
)
SEEDS = 3  # suggested plans that a budget's additive optimum meets
JOINT_SEEDS = 9  # where groups are joined: of each alone and of all together
TRIES = 3  # draws for every contender wanted

Play = Generator[list[Trial], Sequence[Result], bool]


class Rounds(Scripted):
    """What `search=auto` plays with: how it measures, opens budgets, proposes, races and learns; settings as there."""

    probes = True  # the table is measured at the dense candidate

    def __init__(
        self,
        problem: Problem,
        windows: int = 1,
        candidates: int = 20,
        first: int = 1,
        racers: int = 3,
        chunk: int = 2,
        cap: int = 4,
        z: float = 2.0,
        drop: float = 1.0,
        confirm: int = 0,
        radius: int = 1,
        caution: Sequence[float] = (0.4, 2.0),
        reach: float = 12.0,
        spacing: float = 0.05,
        smallest: float = 0.3,
    ) -> None:
        self._sizes = problem.sizes("auto")
        self._quality = problem.quality("auto")
        for name, value in (("windows", windows), ("first", first), ("chunk", chunk), ("cap", cap)):
            problem.fidelity(value, f"search.{name}")
        at_least("candidates", candidates, 1)
        at_least("racers", racers, 1)
        if cap < max(first, chunk):
            raise SettingError(
                f"search.cap={cap} must be at least search.first={first} and search.chunk={chunk}"
            )
        at_least("z", z, 0)
        at_least("drop", drop, 0)
        if confirm:
            problem.fidelity(confirm, "search.confirm")
        at_least("radius", radius, 1)
        self._caution = _range(caution)
        if not reach > 0:
            raise SettingError(f"search.reach={reach} must be above 0")
        self._table_windows, self._count, self._first = windows, candidates, first
        self._racers, self._rules = racers, Rules(chunk, cap, z, drop, confirm)
        self._windows = Windows(problem.windows, problem.seed)
        self._board = Board(self._quality, self._quality.metric in LOG)
        self._model = StepModel(self._sizes.tolist(), reach)
        self._radius = max(1, min(radius, self._model.width - 1))
        self._spread = Spread()
        self._effects: list[Array] = []
        self._lightest = np.inf  # value of the best single change: a front has nothing better below dense
        self._overstated = OVERSTATED if problem.around is None else 1.0
        self._budgets = budgets(problem, self._quality, spacing, smallest)
        self._anchors: list[Anchor] = []
        self._round = 0
        super().__init__(problem)

    def _measure(self) -> Script:
        """The sensitivity table."""
        base, varied = self.problem.base, variations(self.problem.base, self._sizes.tolist())
        fidelity = self._windows.fresh(self._table_windows)
        results = yield [Trial(c, fidelity) for c in (base, *(v.candidate for v in varied))]
        measured = {}
        if results and results[0].ok:
            measured = changes(results[0], varied[: len(results) - 1], results[1:], self._quality)
            self._lightest = min(
                (v for r in results[1:] if np.isfinite(v := self._board.value(r))), default=np.inf
            )
        self._effects = effects(base, self._sizes.tolist(), measured)

    def _found(self, limits: Limits, near: Sequence[Candidate] = ()) -> Script:
        """Open a budget: the additive optimum, unless a plan that the problem or others suggest is better."""
        offered = list(dict.fromkeys([*self._opening(limits), *near]))
        fidelity = self._windows.fresh(self._rules.chunk)
        results = yield [Trial(c, fidelity) for c in offered]
        self._board.add(results)
        self._spread.gaps([self._board.gaps(c, offered[0]) for c in offered[1:]])
        best = min(offered, key=self._board.level)
        self._anchors.append(Anchor(limits, best))
        self._anchors[-1].remember(best)

    def _opening(self, limits: Limits) -> list[Candidate]:
        """Where a budget may start."""
        space, rng = self.problem.space, step_rng(self.problem.seed, 0)
        count = SEEDS if limits.additive else JOINT_SEEDS
        seeds = limits.largest(self.problem.seeds, count)
        suggested = (self.problem.around, limits.optimum(self._effects), *self._held(limits), *seeds)
        offered = list(dict.fromkeys(c for c in suggested if c is not None))
        return offered or [space.repair(space.dense, limits.constraints, rng)]

    def _held(self, limits: Limits) -> Iterator[Candidate | None]:
        """Where costs do not add up, also the optimum with one kind of genes left alone: those of the others may."""
        kinds = () if limits.additive else dict.fromkeys(g.setting for g in self.problem.space.genes)
        base = self.problem.base.indices()
        for kind in kinds:
            rows = zip(self.problem.space.genes, self._effects, base, strict=True)
            yield limits.optimum(
                [e if g.setting != kind else np.where(np.arange(len(e)) == i, e, np.inf) for g, e, i in rows]
            )

    def _play(self, anchor: Anchor) -> Play:
        """One round at a budget; whether there was anything to try."""
        self._round += 1
        champion, rng = anchor.champion, step_rng(self.problem.seed, self._round)
        posterior = self._posterior(champion)
        contenders = self._contenders(anchor, posterior, rng)
        if not contenders:
            return False
        steps = np.array([self._model.code(c) for c in contenders]) - self._model.code(champion)
        beliefs = dict(zip(contenders, self._believed(posterior, steps), strict=True))
        fidelity = self._windows.fresh(self._first)
        self._board.add((yield [Trial(c, fidelity) for c in (champion, *contenders)]))
        racers = self._qualified(champion, beliefs)
        rules = replace(self._rules, cap=min(self._rules.cap * anchor.patience, self.problem.windows))
        verdict = yield from race(
            self._board,
            champion,
            racers,
            [beliefs[c] for c in racers],
            self._spread.noise,
            self._windows,
            rules,
        )
        self._learn(champion, beliefs)
        anchor.judge(verdict)
        return True

    def _posterior(self, champion: Candidate) -> Posterior:
        """What the model knows around a champion."""
        return self._model.posterior(champion, *self._prior(champion), self._spread.misfit)

    def _believed(self, posterior: Posterior, steps: Array) -> list[Belief]:
        """What is expected of contenders that differ from the champion by `steps`."""
        return posterior.beliefs(steps, self._spread.misfit)

    def _drawn(self, posterior: Posterior, rng: np.random.Generator, count: int) -> Array:
        """Step effects to look for optima under."""
        return posterior.draw(rng, count)

    def _prior(self, champion: Candidate) -> tuple[Array, Array]:
        """Mean and sd of every step before any gap is measured: what the table says, at the champion's own level."""
        known = [row[np.isfinite(row)] for row in self._effects]
        worst = 2 * max((float(row.max()) for row in known), default=0.0)
        mean = np.zeros((len(self._sizes), self._model.width - 1))
        for gene, row in enumerate(self._effects):
            mean[gene, : len(row) - 1] = np.diff(np.where(np.isfinite(row), row, worst))
        level = self._board.level(champion)
        if self._board.log and np.isfinite(level):
            mean = mean / np.exp(level)
        mean = self._overstated * mean.ravel()
        return mean, PRIOR * self._spread.noise**0.5 + self._overstated * np.abs(mean)

    def _contenders(self, anchor: Anchor, posterior: Posterior, rng: np.random.Generator) -> list[Candidate]:
        """Draws of the model, each at its optimum near the champion.

        Where these are all known well enough, draws without caution, and then from farther away.
        """
        fresh: dict[Candidate, None] = {}
        limits = anchor.limits.around(anchor.champion)
        for radius, caution in self._reaches():
            drawn = self._drawn(posterior, rng, TRIES * self._count)
            for number, effect in enumerate((posterior.best, *drawn)):
                penalty = rng.uniform(*caution) * (number > 0) * self._spread.noise**0.5
                values = step_values(effect, anchor.champion, self._sizes, radius, penalty)
                candidate = limits.pick(values, rng)
                if candidate is not None and self._open(candidate, anchor):
                    fresh[candidate] = None
                if len(fresh) == self._count:
                    break
            if fresh:
                break
        return list(fresh)

    def _reaches(self) -> list[tuple[int, tuple[float, float]]]:
        """Steps a site and caution of a round's draws; later ones are for when nothing new comes of earlier ones."""
        wider = range(self._radius, self._model.width)
        return [(self._radius, self._caution), *((radius, (0.0, 0.0)) for radius in wider)]

    def _open(self, candidate: Candidate, anchor: Anchor) -> bool:
        """Whether there is anything to learn about a candidate."""
        enough = min(self._rules.cap * PATIENCE, self.problem.windows)
        return candidate != anchor.champion and len(self._board.gaps(candidate, anchor.champion)) < enough

    def _qualified(self, champion: Candidate, beliefs: Mapping[Candidate, Belief]) -> list[Candidate]:
        """The best contenders by belief and first windows."""
        gaps = {c: self._board.gaps(c, champion) for c in beliefs}
        rated = {c: estimate(gaps[c], b, self._spread.noise).gap for c, b in beliefs.items() if len(gaps[c])}
        return sorted(rated, key=lambda c: rated[c])[: self._racers]

    def _learn(self, champion: Candidate, beliefs: Mapping[Candidate, Belief]) -> None:
        gaps = {c: g for c in beliefs if len(g := self._board.gaps(c, champion))}
        self._spread.gaps(list(gaps.values()))
        variances = [self._spread.noise / len(g) for g in gaps.values()]
        misses = [float(g.mean()) - beliefs[c].gap for c, g in gaps.items()]
        self._spread.residuals(misses, variances)
        for (contender, measured), variance in zip(gaps.items(), variances, strict=True):
            self._model.learn(champion, contender, float(measured.mean()), variance)


def _range(caution: Sequence[float]) -> tuple[float, float]:
    if len(caution) != 2 or not 0 <= caution[0] <= caution[1] < np.inf:
        raise SettingError(f"search.caution={list(caution)} must be two numbers: 0 <= least <= most")
    return float(caution[0]), float(caution[1])
