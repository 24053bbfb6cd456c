"""The flagship: a sensitivity table's exact optimum, then moves drawn from a shared model and raced in pairs.

One flow for one budget and for a whole front: a front is a row of budgets, each with a champion of its own, that share
the table, the windows and the model. Where nothing is left to try, a front gets budgets between those it has, and
budgets descents from elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from autoprune.objective import Constraint
from autoprune.searchers.anchors import LEAST, PATIENCE, Anchor, Limits, limits_of
from autoprune.searchers.gaps import Held, halfway
from autoprune.searchers.problem import step_rng
from autoprune.searchers.proposals import kicked, step_values
from autoprune.searchers.race import Belief, race
from autoprune.searchers.rounds import TRIES, Play, Rounds
from autoprune.searchers.script import Script, Trial
from autoprune.space import Candidate

KEPT = 8  # finalists a budget
KICKED = 2  # steps that sites may move to make up for a kick
STALLED = 4  # rounds without a new champion after which a descent, or a front as it is, has ended
RESTARTS = 3  # descents from elsewhere at a single budget that may end no better
VAGUE = 1.0  # variance of a belief that says nothing


class Auto(Rounds):
    """Table, additive optimum of each budget, then rounds of model-drawn moves in paired races.

    windows: fitness windows of the sensitivity table; candidates: moves a round; first: windows that all of
    them meet; racers: how many of them race on; chunk: windows that a race adds at a time; cap: most windows
    of a race, twice as many after every round without a new champion, at most four times; z: paired z of the
    leader that ends a race; drop: paired z at which a racer is given up against the leader; confirm: fresh
    windows on which a better leader meets the champion again, and which alone must not speak against it, 0
    for none; radius: steps a site may move in a round; caution: range of the penalty on every step of a draw,
    in standard deviations of a gap on one window; reach: steps at which a measurement counts 1/e as much;
    spacing: distance of a front's budgets as shares of dense; smallest: the least of them.
    """

    @property
    def single_target(self) -> bool:
        """With constraints it works at one budget; without any it searches a front."""
        return bool(self.problem.constraints)

    def finalists(self) -> list[Candidate]:
        """The champion of every budget, then what each beat last."""
        lists = [list(reversed(a.past))[:KEPT] for a in self._anchors]
        depth = max(map(len, lists), default=0)
        return list(dict.fromkeys(row[i] for i in range(depth) for row in lists if i < len(row)))

    def script(self) -> Script:
        """The whole search."""
        yield from self._measure()
        for limits in self._budgets:
            yield from self._found(limits)
        while True:
            played = 0
            for anchor in [*self._anchors, *self._anchors[-2:0:-1]]:  # down the budgets and up again
                played += yield from self._play(anchor)
            if played and any(a.fruitless < STALLED for a in self._anchors):
                continue
            opened = 0
            while (bound := self._missing()) is not None:
                yield from self._between(bound)
                opened += 1
            if not (played or opened or (yield from self._elsewhere())):
                return

    def _missing(self) -> float | None:
        """The bound at which a front that is done wants another budget most."""
        if self.problem.constraints:
            return None
        space = self.problem.space
        dense, metric = space.cost(space.dense), self._anchors[0].limits.constraints[0].metric
        found = [Held(dense[metric], dense[metric], self._lightest)] if np.isfinite(self._lightest) else []
        for anchor in self._anchors:
            cost = space.cost(anchor.champion)[metric]
            found.append(Held(anchor.bound, cost, self._board.level(anchor.champion)))
        return halfway(found, LEAST * dense[metric])

    def _between(self, bound: float) -> Script:
        """Open a budget among the others and play it until nothing new comes of it."""
        space, metric = self.problem.space, self._anchors[0].limits.constraints[0].metric
        limits = limits_of(space, (Constraint(metric, bound),), space.dense)
        near = sorted(self._anchors, key=lambda a: abs(a.bound - bound))[:2]
        yield from self._found(limits, self._adapted(limits, [a.champion for a in near]))
        opened = self._anchors[-1]
        self._anchors.sort(key=lambda a: -a.bound)
        yield from self._settle(opened)

    def _adapted(self, limits: Limits, champions: Sequence[Candidate]) -> list[Candidate]:
        """Other budgets' champions as the model would change them to fit this one."""
        found, rng = [], step_rng(self.problem.seed, self._round)
        for champion in champions:
            effects = self._posterior(champion).best
            for radius in (self._radius, self._model.width - 1):
                values = step_values(effects, champion, self._sizes, radius, 0.0)
                picked = limits.around(champion).pick(values, rng)
                if picked is not None:
                    found.append(picked)
        return found

    def _settle(self, anchor: Anchor) -> Script:
        """Rounds at one budget until there is nothing to try, or the last few brought no new champion."""
        while anchor.fruitless < STALLED and (yield from self._play(anchor)):
            pass

    def _elsewhere(self) -> Play:
        """Descents from elsewhere, a few at one budget or one at each of a front; whether one has ended better."""
        anchors = list(self._anchors)
        for number in range(max(RESTARTS, len(anchors))):
            if (yield from self._descent(anchors[number % len(anchors)])):
                return True
        return False

    def _descent(self, anchor: Anchor) -> Play:
        """Rounds that begin with the best of many kicked champions; whether they end with a clearly better one."""
        self._round += 1
        champion, rng = anchor.champion, step_rng(self.problem.seed, self._round)
        starts = self._kicked(anchor, rng)
        if not starts:
            return False
        fidelity = self._windows.fresh(self._first)
        self._board.add((yield [Trial(c, fidelity) for c in (champion, *starts)]))
        rated = {c: float(gaps.mean()) for c in starts if len(gaps := self._board.gaps(c, champion))}
        if not rated:
            return False
        visitor = Anchor(anchor.limits, min(rated, key=lambda c: rated[c]))
        yield from self._settle(visitor)
        if visitor.champion == champion:
            return False
        rules = replace(self._rules, cap=min(self._rules.cap * PATIENCE, self.problem.windows))
        verdict = yield from race(
            self._board,
            champion,
            [visitor.champion],
            [Belief(0.0, VAGUE)],
            self._spread.noise,
            self._windows,
            rules,
        )
        if verdict.gap > -(verdict.variance**0.5):
            return False
        anchor.judge(verdict)
        yield from self._settle(anchor)
        return True

    def _kicked(self, anchor: Anchor, rng: np.random.Generator) -> list[Candidate]:
        """The champion with some blocks elsewhere, the others as the model would have them then."""
        champion, limits = anchor.champion, anchor.limits.around(anchor.champion)
        blocks = np.array([g.block for g in self.problem.space.genes])
        found: dict[Candidate, None] = {}
        for drawn in self._drawn(self._posterior(champion), rng, TRIES * self._count):
            values = step_values(drawn, champion, self._sizes, KICKED, 0.0)
            picked = limits.pick(kicked(values, blocks, self._sizes, rng), rng)
            if picked is not None and picked != champion:
                found[picked] = None
            if len(found) == self._count:
                break
        return list(found)
