"""The tables of a comparison, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.bench.search.methods import Method, evopress
from autoprune.bench.search.outcomes import Outcome
from autoprune.bench.search.scoring import Scored
from autoprune.bench.search.statistics import Fronts, ratio, reached, volume_ratio, volumes
from autoprune.objective import Array


@dataclass(frozen=True)
class Compared:
    """Everything that tables and pictures show of one model and space."""

    methods: tuple[Method, ...]
    budgets: tuple[int, ...]
    targets: tuple[float, ...]
    uniform: dict[float, Scored]  # by target
    reference: Scored | None  # of the hypervolume
    outcomes: tuple[Outcome, ...]

    def values(self, method: str, target: float, tokens: int) -> Array | None:
        """Test KL [seeds, windows]; None unless every seed came to a plan."""
        mine = self._of(method, target, tokens)
        return np.stack([plans[0].test for plans in mine]) if mine and all(mine) else None

    def fronts(self, method: str, tokens: int) -> Fronts | None:
        """Fronts by seed; None unless every seed has one."""
        mine = self._of(method, None, tokens)
        return mine if mine and all(mine) else None

    def _of(self, method: str, target: float | None, tokens: int) -> list[list[Scored]]:
        """Plans by seed: at a target, or of a front."""
        wanted = [o for o in self.outcomes if (o.case.method.name, o.case.target) == (method, target)]
        return [o.plans[tokens] for o in sorted(wanted, key=lambda o: o.case.seed) if tokens in o.plans]

    def tokens(self, method: str) -> list[int]:
        """Where the curves of a method were read."""
        return sorted({t for o in self.outcomes if o.case.method.name == method for t in o.plans})

    def curve(self, method: str, target: float) -> dict[int, Array]:
        """Test KL of every seed [seeds] by tokens."""
        found = {t: self.values(method, target, t) for t in self.tokens(method)}
        return {t: v.mean(axis=1) for t, v in found.items() if v is not None}

    def rival(self, target: float, tokens: int) -> str | None:
        """The variant of evopress of lowest mean test KL: the best of them is the one to beat."""
        rated = [
            (float(v.mean()), name)
            for name in evopress(self.methods)
            if (v := self.values(name, target, tokens)) is not None
        ]
        return min(rated)[1] if rated else None


def quality(found: Compared) -> str:
    """Test KL at each target and budget."""
    lines = [
        _head("target", "tokens", "method", "seeds", "test KL", "spread", "to uniform", "to best evopress")
    ]
    for target in found.targets:
        base = found.uniform[target].test[None]
        lines.append(_line(f"{target:g}x", "", "uniform", "", f"{base.mean():.4f}", "", "1", ""))
        for tokens in found.budgets:
            rival = found.rival(target, tokens)
            theirs = None if rival is None else found.values(rival, target, tokens)
            for method in found.methods:
                ours = found.values(method.name, target, tokens)
                if ours is None:
                    continue
                against = (
                    "" if theirs is None else "best" if method.name == rival else ratio(ours, theirs).text
                )
                cells = [f"{target:g}x", f"{tokens:,}", method.name, str(len(ours)), f"{ours.mean():.4f}"]
                lines.append(_line(*cells, f"{_spread(ours):.4f}", ratio(ours, base).text, against))
    return "\n".join(lines)


def hero(found: Compared) -> str:
    """The first method against every other at equal tokens."""
    first, *others = [m.name for m in found.methods]
    lines = [_head("target", "tokens", f"{first} to", "ratio of test KL", "worst seed")]
    for target in found.targets:
        for tokens in found.budgets:
            ours = found.values(first, target, tokens)
            for name in others:
                theirs = found.values(name, target, tokens)
                if ours is not None and theirs is not None:
                    of = ratio(ours, theirs)
                    lines.append(_line(f"{target:g}x", f"{tokens:,}", name, of.text, f"{of.worst:.3f}"))
    return "\n".join(lines)


def effort(found: Compared) -> str:
    """The fewest tokens at which the median test KL of a method is that of another at a budget."""
    names = [m.name for m in found.methods]
    lines = [_head("target", "quality of", "median test KL", *names)]
    for target in found.targets:
        curves = {n: {t: float(np.median(v)) for t, v in found.curve(n, target).items()} for n in names}
        for tokens in found.budgets:
            for name in _measures(found, target, tokens):
                goal = curves[name].get(tokens)
                if goal is not None:
                    cells = [_tokens(reached(curves[n], goal)) for n in names]
                    lines.append(_line(f"{target:g}x", f"{name} at {tokens:,}", f"{goal:.4f}", *cells))
    return "\n".join(lines)


def _measures(found: Compared, target: float, tokens: int) -> list[str]:
    """Whose quality is to be reached: the best evopress, and every method of another kind."""
    rival = found.rival(target, tokens)
    return [m.name for m in found.methods if m.search != "evopress" or m.name == rival]


def costs(found: Compared) -> str:
    """What the runs took: means over seeds."""
    lines = [
        _head(
            "method", "target", "tokens asked", "tokens spent", "wall, s", "thread, s", "block runs a token"
        )
    ]
    groups: dict[tuple[str, str, int], list[Outcome]] = {}
    for outcome in found.outcomes:
        case = outcome.case
        groups.setdefault((case.method.name, case.goal, case.tokens), []).append(outcome)
    for (name, goal, tokens), group in sorted(groups.items()):
        spent, wall, thread, runs = (
            float(np.mean([getattr(o, f) for o in group])) for f in ("spent", "wall", "thread", "block_runs")
        )
        cells = [f"{tokens:,}", f"{spent:,.0f}", f"{wall:.0f}", f"{thread:.0f}"]
        lines.append(_line(name, goal, *cells, f"{runs / max(spent, 1):.4f}"))
    return "\n".join(lines)


def hypervolumes(found: Compared, fronts: Sequence[Method], budgets: Sequence[int]) -> str:
    """Hypervolume of whole fronts; ratios are the first method's to the others'."""
    assert found.reference is not None
    worst = found.reference.test
    first = fronts[0].name
    lines = [
        _head("tokens", "method", "seeds", "hypervolume", "spread", f"{first} to it", "worst seed", "points")
    ]
    for tokens in budgets:
        ours = found.fronts(first, tokens)
        for method in fronts:
            theirs = found.fronts(method.name, tokens)
            if theirs is None:
                continue
            each = np.array(volumes(theirs, worst))
            cells = [f"{tokens:,}", method.name, str(len(each)), f"{each.mean():.4f}", f"{_std(each):.4f}"]
            if ours is None or method.name == first or not each.all():
                cells += ["", ""]
            else:
                of = volume_ratio(ours, theirs, worst)
                cells += [of.text, f"{of.worst:.3f}"]
            lines.append(_line(*cells, f"{np.mean([len(f) for f in theirs]):.1f}"))
    return "\n".join(lines)


def _spread(values: Array) -> float:
    """Standard deviation over seeds."""
    return _std(values.mean(axis=1))


def _std(values: Array) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _tokens(count: int | None) -> str:
    return "–" if count is None else f"{count:,}"


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _head(*names: str) -> str:
    return f"{_line(*names)}\n|{'---|' * len(names)}"
