"""`autoprune bench allocators`: test KL of plans that need no search, by allocator, space and kept share.

`uniform` keeps the same share of every site: of its three divisions between kinds of sites the one that is best on
*selection*. `owl` and `magnitude` divide between blocks and matrices, `nirvana` between attention and FFN, `stun`
between the experts of blocks; those that do not fit a model or space are left out. Shares are of block parameters.
Experts are ranked by each criterion of `--experts`. Mean and spread over calibration seeds, each with windows of its
own; `to uniform` is the mean over seeds of the ratio to uniform of the same seed. Rows are kept under `--work` and read
from there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import Work

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from autoprune.run.parts import Parts
    from autoprune.space import Plan

COLUMNS = ("space", "share", "allocator", "test KL", "spread", "to uniform")
Place = tuple[str, str, str]  # space, share, allocator
Found = dict[Place, list[float]]


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    judged = [options.data, options.tokens, options.windows, options.ratios, options.set]
    work, found = Work(options.work, options.model, judged), dict[Place, list[float]]()
    for seed in range(options.seeds):
        for space in options.spaces:
            for experts in options.experts if "experts" in space.split(",") else [""]:
                words = [f"space=[{space}]", f"calibration.seed={seed}"]
                words += [f"calibration.expert_criterion={experts}"] if experts else []
                name = f"{space}, by {experts}" if experts else space
                row = work.row(f"{seed}-{name.replace(', ', '-')}", lambda w=words: _row(options, w))  # type: ignore[misc]
                print(seed, name, row, file=sys.stderr, flush=True)
                for key, kl in row.items():
                    allocator, _, share = key.partition("@")
                    found.setdefault((name, share, allocator), []).append(kl)
    told = (
        f"{options.model}; {options.tokens:,} calibration tokens, {options.seeds} calibration seeds, "
        f"{options.windows} selection and test windows each."
    )
    publish("allocators", __doc__, args, f"{_table(found)}\n\n{told}", options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("allocators", __doc__)
    found.add_argument("--spaces", nargs="+", default=["structured", "sparsity"], help="what may change")
    found.add_argument("--ratios", type=float, nargs="+", default=[0.7, 0.5], help="kept shares")
    found.add_argument("--experts", nargs="+", default=["clusters", "activation"], help="their criteria")
    found.add_argument("--seeds", type=count, default=3, help="how many calibration seeds, from 0")
    found.add_argument("--tokens", type=int, default=32768, help="calibration tokens")
    found.add_argument("--windows", type=int, default=64, help="selection windows, and test windows")
    found.add_argument("--set", nargs="*", default=[], metavar="key=value", help="further settings")
    found.add_argument("--work", default="results/bench-allocators", help="where rows are kept")
    return found.parse_args(list(args))


def _row(options: argparse.Namespace, words: Sequence[str]) -> dict[str, float]:
    """Test KL by `ALLOCATOR@SHARE`, for one space and seed."""
    from autoprune.config import BASELINES
    from autoprune.errors import SettingError
    from autoprune.progress import Progress
    from autoprune.run.finals import baseline_entries
    from autoprune.run.parts import open_parts

    with Progress(quiet=True) as progress:
        parts = open_parts(_settings(options, words), progress)
    space, found = parts.space(None), dict[str, float]()
    for name in BASELINES:
        try:
            groups = baseline_entries(space, [name], options.ratios, parts.baselines.named)
        except SettingError:  # it does not fit this model or space
            continue
        found |= {at: _best(parts, [f.plan for f in group]) for at, group in groups.items()}
    return found


def _settings(options: argparse.Namespace, words: Sequence[str]) -> DictConfig:
    from autoprune.config import compose

    given = [f"model={options.model}", f"data={options.data}", f"calibration.tokens={options.tokens}"]
    judged = [f"selection_windows={options.windows}", f"test_windows={options.windows}"]
    return compose(
        [*given, *judged, "latency.mode=off", "evaluator=[divergence]", *_fitting(options.set, words), *words]
    )


def _fitting(settings: Sequence[str], words: Sequence[str]) -> list[str]:
    """Those of groups that the space has."""
    groups = words[0].removeprefix("space=[").rstrip("]").split(",")
    return [w for w in settings if not w.startswith("space.") or w.split(".")[1] in groups]


def _best(parts: Parts, plans: Sequence[Plan]) -> float:
    """Test KL of the plan that is best on *selection*."""
    from autoprune.evaluation import Failure
    from autoprune.objective import Split
    from autoprune.run.parts import held_out

    def scores(chosen: Sequence[Plan], split: Split) -> list[float]:
        evaluation = parts.evaluation(parts.evaluators)
        found = evaluation.evaluate(list(chosen), held_out(parts.cfg, parts.corpus, split))
        return [float("inf") if isinstance(s, Failure) else s.metrics["kl"] for s in found]

    ranked = scores(plans, Split.SELECTION) if len(plans) > 1 else [0.0]
    return scores([plans[int(np.argmin(ranked))]], Split.TEST)[0]


def _table(found: Found) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for (space, share, allocator), kls in sorted(found.items(), key=_order):
        spread = f"{np.std(kls, ddof=1):.4f}" if len(kls) > 1 else ""
        base = np.array(found[space, share, "uniform"])
        ratio = f"{float((np.array(kls) / base).mean()):.3f}"
        cells = [space, f"{share}x", allocator, f"{np.mean(kls):.4f}", spread, ratio]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _order(item: tuple[Place, list[float]]) -> tuple[str, float, int]:
    from autoprune.config import BASELINES

    (space, share, allocator), _ = item
    return space, -float(share), BASELINES.index(allocator)
