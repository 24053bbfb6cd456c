"""Races: contenders meet a champion on the same windows, more of them until the leader is clear.

Pairing on windows cuts the noise of a difference to about a tenth, so most races end after a few windows. Values are
remembered window by window: an evaluation on fresh windows adds to what is known and never replaces it.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from autoprune.objective import Array, Fidelity, Objective, Result, Split
from autoprune.searchers.problem import FLOOR
from autoprune.searchers.script import Trial
from autoprune.space import Candidate


class Windows:
    """Hands out fitness windows in their frozen order, from a place that depends on the seed, and then in a circle."""

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self._next = int(np.random.default_rng([seed, 3]).integers(count))

    def fresh(self, count: int) -> Fidelity:
        """The next windows in line, at most as many as there are; a range never wraps around."""
        count = min(count, self.count)
        if self._next + count > self.count:
            self._next = 0
        start = self._next
        self._next = (start + count) % self.count
        return Fidelity(Split.FITNESS, (start, start + count))


@dataclass
class Board:
    """Every window's value of every candidate; `log`: of metrics that shrink towards 0 the logarithm."""

    objective: Objective
    log: bool
    _known: dict[Candidate, dict[int, float]] = field(default_factory=dict)

    def add(self, results: Sequence[Result]) -> None:
        """Remember usable results; where a metric has no value a window, its mean stands for each."""
        for result in results:
            if result.ok:
                start, stop = result.proposal.fidelity.windows
                row = self._known.setdefault(result.proposal.candidate, {})
                row.update(zip(range(start, stop), self._values(result), strict=True))

    def gaps(self, contender: Candidate, champion: Candidate) -> Array:
        """Contender minus champion on every window that both have met, in window order."""
        return self.gaps_on(contender, champion, self.met(contender, champion))

    def gaps_on(self, contender: Candidate, champion: Candidate, windows: Iterable[int]) -> Array:
        """Contender minus champion on windows that both have met, in window order."""
        return np.array([self._known[contender][w] - self._known[champion][w] for w in sorted(windows)])

    def met(self, contender: Candidate, champion: Candidate) -> set[int]:
        """The windows that both have met."""
        return self._known.get(contender, {}).keys() & self._known.get(champion, {}).keys()

    def level(self, candidate: Candidate) -> float:
        """Mean of what is known of a candidate; infinite when nothing is."""
        values = self._known.get(candidate)
        return float(np.mean(list(values.values()))) if values else math.inf

    def value(self, result: Result) -> float:
        """A result's mean as it would be remembered; infinite for one that is not usable."""
        return float(self._values(result).mean()) if result.ok else math.inf

    def _values(self, result: Result) -> Array:
        metric, count = self.objective.metric, result.proposal.fidelity.count
        values = np.asarray(result.per_window.get(metric, np.full(count, result.metrics[metric])), float)
        if self.objective.maximise:
            values = -values
        return np.log(np.maximum(values, FLOOR)) if self.log else values


@dataclass(frozen=True)
class Rules:
    """When a race ends: `chunk` windows are added until the leader's paired |z| passes `z` or it met `cap` windows.

    A contender that is `drop` standard errors behind the leader leaves. A leader that is better then meets the champion
    on `confirm` more windows, 0 for none, and is better only if these do not speak against it by themselves.
    """

    chunk: int = 2
    cap: int = 16
    z: float = 2.0
    drop: float = 1.0
    confirm: int = 0


@dataclass(frozen=True)
class Belief:
    """What is expected of a contender before it runs: its gap to the champion, and how sure that is (variance)."""

    gap: float
    variance: float


@dataclass(frozen=True)
class Verdict:
    """How a race ended: the leader, its estimated gap to the champion (negative: better) and that gap's variance."""

    leader: Candidate | None
    gap: float = math.inf
    variance: float = math.inf


Race = Generator[list[Trial], Sequence[Result], Verdict]


def race(
    board: Board,
    champion: Candidate,
    contenders: Sequence[Candidate],
    beliefs: Sequence[Belief],
    noise: float,
    windows: Windows,
    rules: Rules,
) -> Race:
    """Run contenders against the champion on fresh windows, dropping who is clearly behind the leader.

    `noise` is the variance of a gap on one window; a contender's estimate joins its belief and all its gaps by their
    precision, which is what keeps the luckiest of many from winning. Sequential: paired z as a stop rule.
    """
    alive = dict(zip(contenders, beliefs, strict=True))
    met = 0
    while alive:
        fidelity = windows.fresh(rules.chunk)
        results = yield [Trial(c, fidelity) for c in (champion, *alive)]
        board.add(results)
        met += fidelity.count
        known = {r.proposal.candidate for r in results if r.ok}
        alive = {c: b for c, b in alive.items() if c in known}
        if champion not in known or not alive:
            break
        estimates = {c: estimate(board.gaps(c, champion), b, noise) for c, b in alive.items()}
        leader = min(estimates, key=lambda c: estimates[c].gap)
        best = estimates[leader]
        score = best.gap / math.sqrt(best.variance)
        alive = {
            c: b for c, b in alive.items() if c == leader or _behind(board, c, leader, noise) < rules.drop
        }
        clear = score > rules.z or (score < -rules.z and len(alive) == 1)
        if clear or met >= rules.cap:
            verdict = Verdict(leader, best.gap, best.variance)
            return (yield from confirmed(board, champion, verdict, windows, rules.confirm))
    return Verdict(None)


def confirmed(board: Board, champion: Candidate, verdict: Verdict, windows: Windows, count: int) -> Race:
    """A verdict for a leader, who was chosen for being ahead, looked at on windows that had no part in that.

    Where its mean gap on them alone is not below 0, that is the verdict's gap. Windows that both have met before say
    nothing new; where there are no others the verdict stands.
    """
    leader = verdict.leader
    if not count or leader is None or verdict.gap >= 0:
        return verdict
    fidelity, before = windows.fresh(count), board.met(leader, champion)
    results = yield [Trial(champion, fidelity), Trial(leader, fidelity)]
    board.add(results)
    if not all(r.ok for r in results):
        return Verdict(None)
    gaps = board.gaps_on(leader, champion, board.met(leader, champion) - before)
    return replace(verdict, gap=float(gaps.mean())) if len(gaps) and gaps.mean() >= 0 else verdict


def estimate(gaps: Array, belief: Belief, noise: float) -> Belief:
    """Belief and measured gaps, weighted by precision."""
    precision = 1 / belief.variance + len(gaps) / noise
    return Belief(float((belief.gap / belief.variance + gaps.sum() / noise) / precision), 1 / precision)


def _behind(board: Board, contender: Candidate, leader: Candidate, noise: float) -> float:
    gaps = board.gaps(contender, leader)
    return float(gaps.mean() / math.sqrt(noise / len(gaps))) if len(gaps) else math.inf
