"""`autoprune list runs`: what became of each run."""

from __future__ import annotations

import csv
from pathlib import Path

from autoprune.report.text import short
from autoprune.runs import TABLE, Seen, find_runs, method, model_name

HEADS = ("run", "state", "model", "search", "tokens", "best point")
HALF = 0.5


def show(folder: str) -> None:
    """Print a line for every run in and below the folder; why one is broken stands below."""
    runs = find_runs([folder])
    lines = [HEADS, *(_line(run) for run in runs)]
    widths = [max(len(line[place]) for line in lines) for place in range(len(HEADS))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
    for run in runs:
        if run.state == "broken":
            print(f"{run.name}: {run.reason}")


def _line(run: Seen) -> tuple[str, ...]:
    asked = float(run.settings.get("tokens", 0) or 0)
    tokens = f"{short(run.tokens)}/{short(asked)}" if run.settings else "–"
    best = _best(run.path / TABLE) if run.state == "finished" else "–"
    return run.name, run.state, model_name(run.settings) or "–", method(run.settings) or "–", tokens, best


def _best(table: Path) -> str:
    """The best test KL at half the block parameters, or of the smallest model when none is as small."""
    try:
        with table.open(newline="", encoding="utf-8") as lines:
            rows = [r for r in csv.DictReader(lines) if r["name"].startswith("front") and r["kl_test"]]
            points = [(float(r["params_ratio"]), float(r["kl_test"]), r["key"]) for r in rows]
    except (OSError, ValueError, KeyError, csv.Error):
        return "leaderboard.csv cannot be read"
    if not points:
        return "–"
    small = [p for p in points if p[0] <= HALF + 1e-9]
    size, kl, key = min(small, key=lambda p: p[1]) if small else min(points)
    return f"{size:.2f}x: test KL {kl:.3g} ({key})"
