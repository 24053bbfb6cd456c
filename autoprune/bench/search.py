"""`autoprune bench search`: test KL of searched plans against uniform ones with the same ladders.

For every seed: evopress at each ratio, and one nsga2 front read at these ratios. Runs are kept under `--work`, so an
interrupted benchmark goes on where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from autoprune.api import resume, search
from autoprune.bench.table import parser, publish
from autoprune.front import Front
from autoprune.ledger import FILE, Ledger

RATIOS = (0.6, 0.4)
COLUMNS = (
    *("model", "method", "tokens", "ratio", "seeds", "uniform", "test KL", "spread"),
    *("lower by", "fitness KL", "gap"),
)


def main(args: Sequence[str]) -> None:
    """Run, print and write the table."""
    options = _parse(args)
    rows = [row for seed in range(options.seeds) for row in _seed(options, seed)]
    table = markdown(pd.DataFrame(rows))
    publish("search", __doc__, args, table, options.to)


def _parse(args: Sequence[str]) -> argparse.Namespace:
    found = parser("search", __doc__)
    found.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    found.add_argument("--single", type=float, default=2e6, help="tokens of an evopress run")
    found.add_argument("--front", type=float, default=4e6, help="tokens of an nsga2 run")
    found.add_argument("--ladder", default="refit", help="calibration.ladder: refit or nested")
    found.add_argument("--criterion", default="obs", help="calibration.criterion: obs or activation")
    found.add_argument("--work", default="results/bench-search", help="where the runs are kept")
    return found.parse_args(list(args))


def _seed(options: argparse.Namespace, seed: int) -> list[dict[str, Any]]:
    rows = []
    for ratio in RATIOS:
        name = f"evopress-{ratio:g}-{seed}"
        bound = {"params": f"{ratio:g}x"}
        front = _run(options, name, search="evopress", tokens=options.single, constraints=bound, seed=seed)
        rows.append(_row(options, front, "evopress", ratio, seed))
    front = _run(options, f"nsga2-{seed}", search="nsga2", tokens=options.front, constraints={}, seed=seed)
    return rows + [_row(options, front, "nsga2", ratio, seed) for ratio in RATIOS]


def _run(options: argparse.Namespace, name: str, **wanted: Any) -> Front:
    ladder = f"{options.ladder}-{options.criterion}"
    folder = Path(options.work) / Path(options.model).name / ladder / name
    if (folder / "leaderboard.csv").is_file():
        return Front(folder)
    if (folder / FILE).is_file():
        return resume(folder)
    settings = ["latency.mode=off", "quiet=true", f"uniform={list(RATIOS)}"]
    settings += [f"calibration.ladder={options.ladder}", f"calibration.criterion={options.criterion}"]
    return search(options.model, data=options.data, out=folder, settings=settings, **wanted)


def _row(options: argparse.Namespace, front: Front, method: str, ratio: float, seed: int) -> dict[str, Any]:
    frame = front.frame()
    uniform = frame[frame["name"] == f"uniform@{ratio:g}"].iloc[0]
    point = front.pick(params=ratio).figures
    ledger = Ledger.open(front.folder / FILE)
    row = {
        **{"model": Path(options.model).name, "method": method, "ratio": ratio, "seed": seed},
        **{"tokens": ledger.tokens(), "uniform": uniform["kl_test"], "kl": point["kl_test"]},
        "fitness": point["kl_fitness"],
    }
    ledger.close()
    return row


def markdown(rows: pd.DataFrame) -> str:
    """One line per method and ratio: means over seeds, the spread (standard deviation), and the change of the means."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    for (model, ratio, method), group in rows.groupby(["model", "ratio", "method"], sort=False):
        kl, uniform, fitness = group["kl"].mean(), group["uniform"].mean(), group["fitness"].mean()
        cells = [
            *(str(model), str(method), f"{group['tokens'].mean():,.0f}", f"{ratio:g}x", str(len(group))),
            *(f"{uniform:.4f}", f"{kl:.4f}", f"{group['kl'].std(ddof=1) if len(group) > 1 else 0.0:.4f}"),
            *(f"{1 - kl / uniform:.1%}", f"{fitness:.4f}", f"{kl / fitness - 1:+.1%}"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
