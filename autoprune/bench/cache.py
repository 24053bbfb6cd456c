"""`autoprune bench cache`: KV-cache budgets searched block by block, against one budget for all blocks.

For each policy one search at `constraints={kv_bytes: 0.25x}`. Its best plan by *selection* and the uniform one (the
same budget in every block, what is left over going to the first ones) are decoded teacher-forced over the same *test*
windows: KL on the second half of each, after the first was read as a prompt. Means over searches with different seeds
and their standard deviation; intervals of the change, 95 %, are of a bootstrap over seeds and the same windows.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import count, parser, publish, spread
from autoprune.bench.work import work_folder
from autoprune.errors import MeasurementError

if TYPE_CHECKING:
    from autoprune.evaluation import Scores
    from autoprune.run.parts import Parts
    from autoprune.space import Plan

POLICIES = ("window", "accumulated", "streaming")
METRIC = "kv_bytes"
LADDERS = ("calibration.ladder=nested", "calibration.tokens=8192")  # no weights change: any will do
COLUMNS = ("policy", "uniform KL", "searched KL", "change", "kv", "kept by block, searched (seed 0)")


def main(args: Sequence[str]) -> None:
    """Search, measure, print and write the table."""
    options = _parse(args)
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for policy in options.policies:
        lines.append(_row(options, policy))
    publish("cache", __doc__, args, "\n".join(lines), options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("cache", __doc__)
    found.add_argument("--policies", nargs="+", default=list(POLICIES), help="of space.kv_cache.policy")
    found.add_argument("--ratio", type=float, default=0.25, help="KV bytes to those of the dense model")
    found.add_argument("--tokens", type=float, default=3e5, help="tokens of each search")
    found.add_argument("--seeds", type=count, default=3, help="how many searches of each policy, from seed 0")
    found.add_argument("--windows", type=int, default=128, help="test windows")
    found.add_argument("--work", default="results/bench-cache", help="where the runs are kept")
    found.add_argument("--settings", nargs="*", default=[], help="further settings of the searches")
    return found.parse_args(list(args))


def _row(options: argparse.Namespace, policy: str) -> str:
    """One line of the table; a search that is there already is not made again."""
    from autoprune.config import compose
    from autoprune.progress import Progress
    from autoprune.run.parts import open_parts
    from autoprune.uniform import uniform_candidates

    settings = [
        *LADDERS,
        "latency.mode=off",
        "quiet=true",
        f"space.kv_cache.policy={policy}",
        *options.settings,
    ]
    named = [f"model={options.model}", f"data={options.data}", "space=[kv_cache]", *settings]
    searched = [_searched(options, policy, seed, settings) for seed in range(options.seeds)]
    parts = open_parts(compose(named), Progress(quiet=True))
    space = parts.space(None)
    uniform = next(iter(uniform_candidates(space, options.ratio, METRIC)), None)
    if uniform is None:
        raise MeasurementError(f"--ratio {options.ratio}: no uniform plan of policy {policy} is that small")
    plain, *found = _scored(parts, [space.decode(uniform), *searched], options.windows)
    return _line(policy, plain, found, _kept(searched[0]), [_ratio(parts, plan) for plan in searched])


def _searched(options: argparse.Namespace, policy: str, seed: int, settings: Sequence[str]) -> Plan:
    """The best plan of a run by *selection*."""
    from autoprune.api import resume, search
    from autoprune.front import Front
    from autoprune.ledger import FILE
    from autoprune.space import Plan

    made = work_folder(options.work, options.model, options.data, options.tokens, options.settings)
    folder = made / f"{policy}-{options.ratio:g}-{seed}"
    if not (folder / FILE).is_file():
        search(
            options.model,
            data=options.data,
            space=["kv_cache"],
            objectives=("kl", METRIC),
            constraints={METRIC: f"{options.ratio:g}x"},
            tokens=options.tokens,
            seed=seed,
            out=folder,
            settings=settings,
        )
    elif not (folder / "leaderboard.csv").is_file():
        resume(folder)
    rows = Front(folder).frame()
    best = rows[rows["name"] == "front"].sort_values("kl_selection", kind="stable").iloc[0]
    return Plan.from_json(str(best["plan"]))


def _scored(parts: Parts, plans: Sequence[Plan], windows: int) -> list[Scores]:
    """On the same windows of *test*."""
    from autoprune.evaluation import Failure
    from autoprune.objective import Fidelity, Split

    fidelity = Fidelity(Split.TEST, (0, min(windows, parts.corpus.count(Split.TEST))))
    found = []
    for outcome in parts.evaluation(parts.evaluators).evaluate(plans, fidelity):
        if isinstance(outcome, Failure):
            raise MeasurementError(outcome.reason)
        found.append(outcome)
    return found


def _ratio(parts: Parts, plan: Plan) -> float:
    from autoprune.shape import AnalyticCosts
    from autoprune.space import plan_cost

    costs = AnalyticCosts(parts.adapter.shape, int(parts.cfg.window))
    return plan_cost(plan, costs)[METRIC] / plan_cost(parts.dense_plan(), costs)[METRIC]


def _kept(plan: Plan) -> str:
    """What the policy's own setting says of every block."""
    from autoprune.kv_policy import GENES

    own = [dict(plan.at(block, "attention").settings) for block in range(plan.blocks)]
    return " ".join(str(settings[name]) for settings in own for name in GENES & settings.keys())


def _line(policy: str, plain: Scores, found: Sequence[Scores], kept: str, ratios: Sequence[float]) -> str:
    from autoprune.bench.search.statistics import ratio

    ours = np.stack([scores.per_window["kl"] for scores in found])
    gain = ratio(ours, plain.per_window["kl"][None])
    change, low, high = (100 * (value - 1) for value in (gain.value, gain.low, gain.high))
    cells = [policy, f"{plain.metrics['kl']:.4f}", spread([scores.metrics["kl"] for scores in found])]
    cells += [f"{change:+.0f} % [{low:+.0f}, {high:+.0f}]", f"{np.mean(ratios):.3f}x", kept]
    return f"| {' | '.join(cells)} |"
