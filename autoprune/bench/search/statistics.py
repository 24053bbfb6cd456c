"""Figures with their uncertainty: paired bootstrap over seeds and test windows, hypervolumes, tokens to a quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.bench.search.scoring import Scored
from autoprune.objective import Array
from autoprune.report.hypervolume import hypervolume

DRAWS = 10_000
FRONT_DRAWS = 500
LEVEL = 0.95


@dataclass(frozen=True)
class Ratio:
    """A ratio of means, its interval, and the ratio of the worst seed."""

    value: float
    low: float
    high: float
    worst: float

    @property
    def text(self) -> str:
        """`0.93 [0.91, 0.95]`."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def ratio(ours: Array, theirs: Array, draws: int = DRAWS) -> Ratio:
    """Mean of ours over mean of theirs, both [seeds, windows]; one row stands for every seed.

    Paired: each draw of the bootstrap takes the same seeds and the same windows of both.
    """
    seeds = max(len(ours), len(theirs))
    a, b = (np.broadcast_to(x, (seeds, x.shape[1])) for x in (ours, theirs))
    by_seed, by_window = _weights(draws, *a.shape)
    drawn = _means(by_seed, a, by_window) / _means(by_seed, b, by_window)
    low, high = _interval(drawn)
    worst = float((a.mean(axis=1) / b.mean(axis=1)).max())
    return Ratio(float(a.mean() / b.mean()), low, high, worst)


def _weights(draws: int, seeds: int, windows: int) -> tuple[Array, Array]:
    """How often each seed [draws, seeds] and window [draws, windows] is drawn, as shares; always the same draws."""
    rng = np.random.default_rng(0)
    return _shares(rng, draws, seeds), _shares(rng, draws, windows)


def _shares(rng: np.random.Generator, draws: int, count: int) -> Array:
    return rng.multinomial(count, np.full(count, 1 / count), size=draws) / count


def _means(by_seed: Array, values: Array, by_window: Array) -> Array:
    means: Array = ((by_seed @ values) * by_window).sum(axis=1)
    return means


def _interval(drawn: NDArray[np.float64]) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return float(low), float(high)


def volume(points: Sequence[tuple[float, float]], worst: float) -> float:
    """Hypervolume of (params_ratio, test KL) on axes params_ratio and log10 KL, against (1.0, log10 of `worst`)."""
    logs = [(across, float(np.log10(kl))) for across, kl in points if kl > 0]
    return hypervolume(logs, (1.0, float(np.log10(worst))))


Fronts = Sequence[Sequence[Scored]]  # by seed


def volumes(fronts: Fronts, worst: Array) -> list[float]:
    """Hypervolume of each seed's front; `worst` is the test KL of the reference, window by window."""
    return [volume([(p.ratio, p.kl) for p in front], float(worst.mean())) for front in fronts]


def volume_ratio(ours: Fronts, theirs: Fronts, worst: Array, draws: int = FRONT_DRAWS) -> Ratio:
    """Mean hypervolume of ours over theirs; each draw takes the same seeds, and windows for reference and fronts."""
    by_seed, by_window = _weights(draws, len(ours), worst.size)

    def drawn(fronts: Fronts, at: int) -> float:
        weights, reference = by_window[at], float(by_window[at] @ worst)
        chosen = [(share, front) for share, front in zip(by_seed[at], fronts, strict=True) if share > 0]
        return sum(
            float(share) * volume([(p.ratio, float(weights @ p.test)) for p in front], reference)
            for share, front in chosen
        )

    low, high = _interval(np.array([drawn(ours, i) / drawn(theirs, i) for i in range(draws)]))
    a, b = (np.array(volumes(f, worst)) for f in (ours, theirs))
    return Ratio(float(a.mean() / b.mean()), low, high, float((a / b).min()))


def reached(curve: Mapping[int, float], quality: float) -> int | None:
    """The fewest tokens at which a curve is at `quality` or below; None when it never is."""
    return min((tokens for tokens, value in curve.items() if value <= quality), default=None)
