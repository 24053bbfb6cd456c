"""`autoprune bench searchers`: what asking and telling cost by themselves, in a space of 500 genes.

Processor milliseconds a candidate, on average, at `params: 0.5x` with losses that cost nothing, from the second batch
on: the first one also sets a method up. Evaluating and recording are not counted. 2 ms is the aim.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from autoprune.bench.methods import searcher, structured
from autoprune.bench.table import parser, publish
from autoprune.objective import Objective, parse_constraint
from autoprune.run.seeds import seed_candidates
from autoprune.searchers.problem import Problem
from autoprune.searchers.tabular import Tabular
from autoprune.shape import AnalyticCosts, Shape

METHODS = ("auto", "random", "evopress", "evopress+", "nsga2")
SHAPE = Shape(
    "llama", blocks=250, hidden=512, heads=8, kv_groups=4, head_dim=64, ffn=2048, vocabulary=1000, tied=True
)


def main(args: Sequence[str]) -> None:
    """Measure, print and write the table."""
    given = parser("searchers", __doc__, model=False)
    given.add_argument("--methods", nargs="+", default=METHODS, help="which methods")
    given.add_argument("--batches", type=int, default=12, help="batches of each")
    options = given.parse_args(list(args))
    lines = ["| method | candidates | ask + tell |", "|---|---|---|"]
    for name in options.methods:
        count, cost = measure(name, options.batches)
        lines.append(f"| {name} | {count} | {1e3 * cost:.2f} ms |")
    publish("searchers", __doc__, args, "\n".join(lines), options.to)


def measure(name: str, batches: int) -> tuple[int, float]:
    """How many candidates were asked for, and seconds of one of them."""
    space = structured(SHAPE, [AnalyticCosts(SHAPE)])
    limit = parse_constraint("params", "0.5x", space.cost(space.dense))
    objectives = (Objective("kl"), Objective("params"))
    seeds = seed_candidates(space, [limit], (), 0)
    evaluate = Tabular(space, 0)
    made = searcher(name, Problem(space, objectives, (limit,), 0, 64, seeds))
    total, count = 0.0, 0
    for number in range(batches + 1):
        started = time.thread_time()
        asked = made.ask(made.batch)
        spent = time.thread_time() - started
        results = [evaluate(p) for p in asked]
        started = time.thread_time()
        made.tell(results)
        spent += time.thread_time() - started
        if number and asked:
            total += spent
            count += len(asked)
    return count, total / max(1, count)
