"""`autoprune bench proxies`: how well cheap proxies rank random plans by KL, beside their parameter count.

Two sets of plans: of any size, where counting parameters ranks well, and of one size, where it cannot and a proxy has
to earn its price. Figures are Kendall's tau between proxy and quality (KL with its sign turned) with a bootstrap
interval of 95 % over plans, and Spearman's rho; a negative one ranks too, the other way round. `params` beside them is
the tau of the parameter count. The proxies and `kl`, a search's own fitness, see the first windows of *fitness*; the KL
that counts is that of *selection*. `seconds` are the thread's for one plan of the first set, prefixes shared where the
proxy shares them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.bench.table import parser, publish
from autoprune.config import compose
from autoprune.errors import SettingError
from autoprune.evaluation import Failure, WindowEvaluator
from autoprune.objective import Constraint, Fidelity, Split
from autoprune.progress import Progress
from autoprune.report.correlation import LEAST, Tau, ranking
from autoprune.run.parts import Parts, open_parts
from autoprune.space import Candidate, Plan, Space

PROXIES = ("saliency", "gradient_norm", "head_confidence", "activation_distance", "block_influence")
CLOSE = 0.02  # how much smaller than asked a plan of the second set may be
TRIES = 200
HEAD = ("proxy", "seconds a plan", "tau, any size", "rho", "params", "tau, one size", "rho", "params")


@dataclass(frozen=True)
class Group:
    """Plans with the figures of each: parameter count, proxies, `kl`; and their quality."""

    figures: Mapping[str, list[float]]
    quality: list[float]

    def rank(self, name: str) -> Tau | None:
        """How a figure ranks them."""
        return ranking(self.figures[name], self.quality)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    if options.plans < LEAST:
        raise SettingError(f"--plans {options.plans} must be at least {LEAST}")
    words = [f"model={options.model}", f"data={options.data}", "latency.mode=off"]
    with Progress(quiet=True) as progress:
        parts = open_parts(compose([*words, f"evaluator=[divergence,{','.join(PROXIES)}]"]), progress)
    space, rng = parts.space(None), np.random.default_rng(options.seed)
    seconds: dict[str, float] = {}
    groups = [
        _group(parts, space, draw(space, options.plans, rng, ratio), options, seconds)
        for ratio in (None, options.ratio)
    ]
    publish("proxies", __doc__, args, _table(groups, seconds) + _circumstances(parts, options), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("proxies", __doc__)
    found.add_argument("--plans", type=int, default=64, help="in each of the two sets")
    found.add_argument("--windows", type=int, default=1, help="that a proxy sees")
    found.add_argument("--selection", type=int, default=8, help="windows of the KL that counts")
    found.add_argument("--ratio", type=float, default=0.6, help="parameters of the plans of one size")
    found.add_argument("--seed", type=int, default=0)
    return found.parse_args(list(args))


def draw(space: Space, count: int, rng: np.random.Generator, ratio: float | None) -> list[Candidate]:
    """Different random candidates: of any size, or all at most `CLOSE` below `ratio` of dense parameters."""
    found: dict[Candidate, None] = {}
    whole = space.cost(space.dense)["params"]
    for _ in range(count * TRIES):
        if len(found) == count:
            return list(found)
        if ratio is None:
            found.setdefault(_random(space, rng, rng.uniform(0.2, 1.0)))
            continue
        candidate = _random(space, rng, min(1.0, ratio + 0.2))
        candidate = space.repair(candidate, [Constraint("params", ratio * whole)], rng)
        if space.cost(candidate)["params"] >= (ratio - CLOSE) * whole:
            found.setdefault(candidate)
    raise SettingError(f"--plans {count}: the space has no so many at {ratio or 'any size'}; ask for fewer")


def _random(space: Space, rng: np.random.Generator, level: float) -> Candidate:
    """Each gene near a level of its options."""
    tops = np.array(space.dense.indices())
    shares = np.clip(rng.normal(level, 0.25, len(tops)), 0.0, 1.0)
    return Candidate(tuple(int(v) for v in np.rint(shares * tops)))


def _group(
    parts: Parts,
    space: Space,
    candidates: Sequence[Candidate],
    options: argparse.Namespace,
    seconds: dict[str, float],
) -> Group:
    plans = [space.decode(c) for c in candidates]
    figures = {"params": [space.cost(c)["params"] for c in candidates]}
    few = Fidelity(Split.FITNESS, (0, options.windows))
    kl = next(e for e in parts.evaluators if "kl" in e.metrics)
    for evaluator in parts.evaluators:
        name = evaluator.metrics[0]
        start = time.thread_time()
        figures[name] = scored(parts, evaluator, plans, few)
        seconds.setdefault(name, (time.thread_time() - start) / len(plans))
    whole = Fidelity(Split.SELECTION, (0, options.selection))
    return Group(figures, [-v for v in scored(parts, kl, plans, whole)])


def scored(
    parts: Parts, evaluator: WindowEvaluator, plans: Sequence[Plan], fidelity: Fidelity
) -> list[float]:
    """The metric of every plan; NaN where it has none."""
    outcomes = parts.evaluation([evaluator]).evaluate(plans, fidelity)
    name = evaluator.metrics[0]
    return [float("nan") if isinstance(o, Failure) else o.metrics[name] for o in outcomes]


def _table(groups: Sequence[Group], seconds: Mapping[str, float]) -> str:
    """One line a figure, the baseline's tau beside every one."""
    lines = [f"| {' | '.join(HEAD)} |", "|---" * len(HEAD) + "|"]
    for name in groups[0].figures:
        cells = [name, f"{seconds[name]:.4f}" if name in seconds else "0"]
        for group in groups:
            own, base = group.rank(name), group.rank("params")
            cells += ["constant", "–"] if own is None else [own.cell, f"{own.rho:+.2f}"]
            cells.append("constant" if base is None else f"{base.value:+.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _circumstances(parts: Parts, options: argparse.Namespace) -> str:
    from autoprune.hardware.fingerprint import environment

    return (
        f"\n\n{parts.loaded.name}: {options.plans} plans of any size and as many of {options.ratio:g}x, "
        f"seed {options.seed}; fitness windows for a proxy: {options.windows} of {parts.cfg.window} tokens, selection "
        f"windows for the KL that counts: {options.selection}. On {environment()['cpu']}."
    )
