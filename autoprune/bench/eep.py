"""`autoprune bench eep`: what the two phases of EEP give over random selections of as many experts.

All plans keep the same number of experts in every block and use as many a token as the dense model. `ladder` keeps
those that `activation` ranks first; `random` is the best of as many random selections as phase 1 evaluates; `selected`
is the best of phase 1, which moves rows to unused experts; `merged` the best after phase 2, which mixes experts. Of
each the few of lowest KL on the fitness windows, which are the same for all, are scored on *selection*, and the best
there is taken, as EEP does; `fitness KL` is the lowest there is. Means over seeds of the search; `lower in` counts the
seeds with a lower test KL than `before`, the line that each goes on from, and `by` is the mean of that reduction. Runs
are kept under `--work`: what is there is read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from autoprune.bench.table import count, parser, publish
from autoprune.bench.work import Work

if TYPE_CHECKING:
    import pandas as pd
    from omegaconf import DictConfig

    from autoprune.objective import Split

COLUMNS = ("plans", "evaluations", "fitness KL", "spread", "test KL", "spread", "before", "lower in", "by")
BEFORE = {"random": "ladder", "selected": "random", "merged": "selected"}


def main(args: Sequence[str]) -> None:
    """Search, print and write the table."""
    options = _parse(args)
    settings = [options.data, options.ratio, options.evaluations, options.initial, options.windows]
    settings += [options.finalists, options.selection, options.test, options.set]
    work = Work(options.work, options.model, settings)
    rows = []
    for seed in range(options.seeds):
        rows.append(work.row(f"{seed}", lambda seed=seed: _row(options, work.folder, seed)))  # type: ignore[misc]
        print(seed, rows[-1], file=sys.stderr, flush=True)
    told = (
        f"{options.model}; {options.ratio:g}x of expert memory, {options.windows} fitness windows an evaluation, "
        f"{options.finalists} finalists on {options.selection} selection windows, {options.test} test windows, "
        f"{options.seeds} seeds."
    )
    publish("eep", __doc__, args, f"{_table(rows)}\n\n{told}", options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("eep", __doc__)
    found.set_defaults(model="docs-moe")
    found.add_argument("--ratio", type=float, default=0.5, help="expert memory to dense")
    found.add_argument("--evaluations", type=int, default=400, help="of a search; a quarter are phase 1's")
    found.add_argument("--initial", type=int, default=30, help="random selections that phase 1 starts from")
    found.add_argument("--windows", type=int, default=16, help="fitness windows an evaluation")
    found.add_argument("--finalists", type=int, default=20, help="plans of each line that selection sees")
    found.add_argument("--selection", type=int, default=32, help="selection windows")
    found.add_argument("--test", type=int, default=64, help="test windows")
    found.add_argument("--seeds", type=count, default=5, help="how many seeds of the search, from 0")
    found.add_argument("--set", nargs="*", default=[], metavar="key=value", help="further settings")
    found.add_argument("--work", default="results/bench-eep", help="where runs and rows are kept")
    return found.parse_args(list(args))


def _row(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, float]:
    """KL on fitness and test by `PLANS_SPLIT`, and how many evaluations each took, of one seed."""
    first = options.evaluations // 4
    searched = _searched(options, folder / f"eep-{seed}", seed, options.evaluations, options.initial)
    drawn = _searched(
        options, folder / f"random-{seed}", seed, first + 1, first + 1
    )  # the first is the ladder's
    groups = {"ladder": drawn[:1], "random": drawn[1:], "selected": searched[:first], "merged": searched}
    scorer, found = _Scorer(_settings(options, seed)), dict[str, float]()
    for name, rows in groups.items():
        best = rows.sort_values("kl", kind="stable").head(options.finalists)
        chosen = scorer.best(best["candidate"].astype(str).tolist())
        found |= {
            f"{name}_evaluations": len(rows),
            f"{name}_fitness": rows["kl"].min(),
            f"{name}_test": chosen,
        }
    return found


def _settings(options: argparse.Namespace, seed: int, *further: str) -> DictConfig:
    from autoprune.config import compose

    words = [f"model={options.model}", f"data={options.data}", "space=[experts,merging]", f"seed={seed}"]
    words += [f"constraints={{expert_bytes: {options.ratio:g}x}}", "objectives=[kl,expert_bytes]"]
    words += ["evaluator=[divergence]", "latency.mode=off", "quiet=true", f"test_windows={options.test}"]
    words += [f"selection_windows={options.selection}"]
    used = f"space.experts.per_token=[{_per_token(options.model)}]"
    return compose([*words, used, *options.set, *further])


def _per_token(model: str) -> int:
    from autoprune.models import adapter_for
    from autoprune.models.load import load_model

    return adapter_for(load_model(model).model).shape.experts_per_token


def _searched(
    options: argparse.Namespace, folder: Path, seed: int, evaluations: int, initial: int
) -> pd.DataFrame:
    """The evaluations of a search in their order; what was begun goes on, what is finished is read."""
    from autoprune.bench.search.runs import opened
    from autoprune.ledger import FILE
    from autoprune.progress import Progress
    from autoprune.run.pipeline import search_only

    words = ["search=eep", f"search.evaluations={evaluations}", f"search.initial={initial}"]
    words += [f"search.windows={options.windows}", f"out={folder}"]
    cfg = _settings(options, seed, *words)
    cfg.tokens = float(evaluations * options.windows * int(cfg.window))
    if not _ended(folder / FILE):
        with Progress(quiet=True) as progress:
            search_only(cfg, "autoprune bench eep", progress)
    with opened(folder) as ledger:
        return ledger.to_frame()


def _ended(file: Path) -> bool:
    from autoprune.bench.search.runs import opened
    from autoprune.ledger import holds_run

    if not holds_run(file):
        return False
    with opened(file.parent) as ledger:
        return bool(ledger.events("searched"))


class _Scorer:
    """Scores candidates on held-out windows, each once."""

    def __init__(self, cfg: DictConfig) -> None:
        from autoprune.progress import Progress
        from autoprune.run.parts import open_parts

        with Progress(quiet=True) as progress:
            self._parts = open_parts(cfg, progress)
        self._space = self._parts.space(None)
        self._known: dict[tuple[Split, str], float] = {}

    def best(self, candidates: Sequence[str]) -> float:
        """Test KL of the candidate that is best on *selection*."""
        from autoprune.objective import Split

        selected = self._kls(candidates, Split.SELECTION)
        return self._kls([candidates[int(np.argmin(selected))]], Split.TEST)[0]

    def _kls(self, candidates: Sequence[str], split: Split) -> list[float]:
        from autoprune.evaluation import Failure
        from autoprune.run.parts import held_out
        from autoprune.space import Candidate

        missing = [c for c in dict.fromkeys(candidates) if (split, c) not in self._known]
        plans = [self._space.decode(Candidate.from_json(text)) for text in missing]
        fidelity = held_out(self._parts.cfg, self._parts.corpus, split)
        scores = self._parts.evaluation(self._parts.evaluators).evaluate(plans, fidelity) if plans else []
        for text, score in zip(missing, scores, strict=True):
            self._known[split, text] = float("inf") if isinstance(score, Failure) else score.metrics["kl"]
        return [self._known[split, c] for c in candidates]


def _table(rows: Sequence[dict[str, float]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for name in ("ladder", *BEFORE):
        cells = [name, f"{rows[0][f'{name}_evaluations']:.0f}"]
        for split in ("fitness", "test"):
            kls = [row[f"{name}_{split}"] for row in rows]
            cells += [f"{np.mean(kls):.4f}", f"{np.std(kls, ddof=1):.4f}" if len(kls) > 1 else ""]
        cells += _against(rows, name, BEFORE[name]) if name in BEFORE else ["", "", ""]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _against(rows: Sequence[dict[str, float]], name: str, before: str) -> list[str]:
    ratios = np.array([row[f"{name}_test"] / row[f"{before}_test"] for row in rows])
    return [before, f"{int((ratios < 1).sum())} of {len(ratios)}", f"{float(1 - ratios.mean()):.1%}"]
