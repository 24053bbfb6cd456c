"""`autoprune bench search`: search methods compared at equal tokens, on the same ladders and splits.

Every method searches every target (block parameters to dense) with every budget and seed. A run hands out the plan of
lowest KL on *selection* among its finalists; its KL on *test* is reported. Methods that do not look at how many tokens
there are run once, and are read at smaller budgets as a run of so many tokens would have ended. `evopress/N` has 1/N of
the published stages of 2,048, 16,384 and 65,536 tokens, at least one window each; the *best evopress* is chosen by its
test KL, which favours it. Ratios are of mean test KL, with paired bootstrap 95 % intervals over seeds and test windows;
spread is the standard deviation over seeds. Whole fronts come from one run without a bound, or for methods that work at
one budget from one run over five targets; hypervolumes are of params_ratio and log10 test KL, against (1.0, KL of
uniform@0.3). Runs are kept under `--work`: what is there is read, what was interrupted goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from autoprune.bench.search import methods, outcomes, runs, tables
from autoprune.bench.search.scoring import Scored, scoring_of
from autoprune.bench.table import count, parser, publish
from autoprune.errors import SettingError

LOWEST = 0.3  # the uniform plan whose KL bounds the hypervolume
METHODS = "evopress/4,evopress/16,evopress/64,nsga2,random"
HELP = "NAME, evopress/4|16|64, or LABEL=NAME:search.KEY=VALUE; the first is compared with each other"


def main(args: Sequence[str]) -> None:
    """Search, score, print and write tables and pictures."""
    compare("search", __doc__, args)


def compare(name: str, doc: str | None, args: Sequence[str], fixed: Sequence[str] = ()) -> None:
    """The same under another benchmark's name, with arguments of its own before the user's."""
    options = _parse([*fixed, *args])
    setting = runs.Setting(options.model, options.data, options.space, tuple(options.settings), options.work)
    window = int(_value(setting, "window"))
    singles, fronts = (methods.parse(text, window) for text in (options.methods, options.fronts))
    found = _compare(options, setting, singles, fronts)
    to = Path(options.to) if options.to else Path("results/search") / f"{setting.name}.md"
    publish(name, doc, args, _text(found, singles, fronts, options.front_budgets, to.stem), to)
    _draw(found, fronts, options.front_budgets, to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("search", __doc__)
    found.set_defaults(to=None)
    found.add_argument("--space", default="structured", help="groups of what may change, joined by commas")
    found.add_argument("--methods", default=METHODS, metavar="M,…", help=HELP)
    found.add_argument("--targets", type=_floats, default=(0.6, 0.4), help="block parameters to dense")
    found.add_argument("--budgets", type=_counts, default=(1_000_000, 3_000_000), help="tokens of a run")
    found.add_argument("--fronts", default="", metavar="M,…", help="methods that search whole fronts")
    found.add_argument("--front-budgets", type=_counts, default=(3_000_000,), help="tokens of a front's run")
    found.add_argument("--seeds", type=count, default=5, help="how many seeds, from 0")
    found.add_argument("--finalists", type=int, default=8, help="plans of a run at a target, on selection")
    found.add_argument("--jobs", type=int, default=1, help="runs at a time, one process each")
    found.add_argument(
        "--settings", nargs="*", default=[], metavar="key=value", help="further settings of all runs"
    )
    found.add_argument("--work", default="results/bench-search", help="where the runs are kept")
    return found.parse_args(list(args))


def _floats(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in text.split(","))


def _counts(text: str) -> tuple[int, ...]:
    return tuple(sorted({int(value) for value in _floats(text)}))


def _value(setting: runs.Setting, key: str) -> float:
    from autoprune.config import compose

    return float(compose(setting.overrides)[key])


def _compare(
    options: argparse.Namespace,
    setting: runs.Setting,
    singles: Sequence[methods.Method],
    fronts: Sequence[methods.Method],
) -> tables.Compared:
    if min(options.seeds, options.jobs, options.finalists) < 1 or not singles:
        raise SettingError("--seeds, --jobs and --finalists must be at least 1, and --methods name one")
    todo = list(outcomes.tasks(singles, options.targets, options.budgets, options.seeds, options.finalists))
    todo += outcomes.tasks(fronts, [None], options.front_budgets, options.seeds, options.finalists)
    scoring = scoring_of(setting)
    uniform = {t: _uniform(scoring.uniform(t), t) for t in options.targets}
    reference = _uniform(scoring.uniform(LOWEST), LOWEST) if fronts else None
    done = outcomes.outcomes(setting, sorted(todo, key=lambda t: t.case.seed), options.jobs)
    return tables.Compared(tuple(singles), options.budgets, options.targets, uniform, reference, tuple(done))


def _uniform(found: Scored | None, ratio: float) -> Scored:
    if found is None:
        raise SettingError(f"--targets: no uniform plan has {ratio:g}x of the block parameters or less")
    return found


def _text(
    found: tables.Compared,
    singles: Sequence[methods.Method],
    fronts: Sequence[methods.Method],
    budgets: Sequence[int],
    stem: str,
) -> str:
    parts = [f"![Test KL against tokens]({stem}-curves.png)", tables.quality(found)]
    if len(singles) > 1:
        parts += [f"`{singles[0].name}` against each other method at equal tokens:", tables.hero(found)]
        parts += ["Tokens needed for the median test KL of another method (first reading at or below it):"]
        parts += [tables.effort(found)]
    if fronts:
        parts += [
            "Whole fronts:",
            f"![Fronts]({stem}-fronts.png)",
            tables.hypervolumes(found, fronts, budgets),
        ]
    return "\n\n".join([*parts, "What the runs took, means over seeds:", tables.costs(found)])


def _draw(found: tables.Compared, fronts: Sequence[methods.Method], budgets: Sequence[int], to: Path) -> None:
    from autoprune.bench.search import pictures
    from autoprune.report.canvas import save_png

    save_png(pictures.curves(found), to.with_name(f"{to.stem}-curves.png"))
    if fronts:
        save_png(pictures.fronts(found, fronts, max(budgets)), to.with_name(f"{to.stem}-fronts.png"))
