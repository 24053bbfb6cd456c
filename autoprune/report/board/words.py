"""The leaderboard as aligned Markdown tables, which read well on a terminal too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from autoprune.report import text
from autoprune.report.board.analysis import Line, Spread
from autoprune.report.board.table import MARK, is_baseline
from autoprune.report.rows import number, word
from autoprune.runs import Seen

Show = Callable[[pd.Series], str]
COLUMNS: tuple[tuple[str, str, Show], ...] = (
    ("run", "run", lambda row: word(row, "run")),
    ("name", "model", lambda row: word(row, "name")),
    ("method", "method", lambda row: word(row, "method")),
    ("seed", "seed", lambda row: text.count(number(row, "seed"))),
    ("params_ratio", "params", lambda row: text.ratio(number(row, "params_ratio"))),
    ("flops_ratio", "FLOPs", lambda row: text.ratio(number(row, "flops_ratio"))),
    ("bytes_ratio", "bytes", lambda row: text.ratio(number(row, "bytes_ratio"))),
    ("prefill_ratio", "prefill", lambda row: text.ratio(number(row, "prefill_ratio"))),
    ("decode_ratio", "decode", lambda row: text.ratio(number(row, "decode_ratio"))),
    ("kl_test", "test KL", lambda row: text.kl(number(row, "kl_test"))),
    ("perplexity_test", "perplexity", lambda row: text.digits(number(row, "perplexity_test"))),
    ("recovery", "recovery", lambda row: word(row, "recovery")),
    ("recovery_steps", "steps", lambda row: text.count(number(row, "recovery_steps"))),
    ("kl_test_recovered", "recovered KL", lambda row: text.kl(number(row, "kl_test_recovered"))),
    (
        "perplexity_test_recovered",
        "recovered perplexity",
        lambda row: text.digits(number(row, "perplexity_test_recovered")),
    ),
    ("tokens", "tokens", lambda row: text.short(number(row, "tokens"))),
    ("space", "space", lambda row: word(row, "space")),
    ("ladders", "ladders", lambda row: word(row, "ladders")),
    ("criterion", "criterion", lambda row: word(row, "criterion")),
    ("constraints", "constraints", lambda row: word(row, "constraints")),
    ("key", "key", lambda row: word(row, "key")),
)
WORDS = ("run", "model", "method", "recovery", "space", "ladders", "criterion", "constraints", "key")
CONSTANT = ("space", "ladders", "criterion", "constraints")  # told once when all rows agree
MARKS = {True: "●", False: ""}


def columns(rows: pd.DataFrame) -> list[tuple[str, str, Show]]:
    """Those columns that hold anything, and that tell rows apart."""
    filled = [c for c in COLUMNS if rows[c[0]].notna().any() and (rows[c[0]].astype(str) != "").any()]
    searched = rows[~is_baseline(rows)]
    return [c for c in filled if not (c[0] in CONSTANT and searched[c[0]].nunique() == 1)]


def cells(rows: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """Heads and lines, the mark of non-dominated rows first."""
    chosen = columns(rows)
    lines = [[MARKS[bool(row[MARK])], *(show(row) for _, _, show in chosen)] for _, row in rows.iterrows()]
    return ["", *(head for _, head, _ in chosen)], lines


def seed_cells(lines: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Heads and lines of the means over seeds, each with its change against uniform."""
    asked = sorted({ratio for line in lines for ratio in line.at}, reverse=True)
    base = next((line.at for line in lines if line.label == "uniform"), {})
    heads = ["search", "seeds", "hypervolume", *(f"at {ratio:g}x" for ratio in asked)]
    found = []
    for line in lines:
        shown = [spread(line.at.get(r)) + _against(line, r, base.get(r)) for r in asked]
        count = text.MISSING if line.label == "uniform" else str(line.seeds)
        found.append([line.label, count, spread(line.hypervolume), *shown])
    return heads, found


def _against(line: Line, ratio: float, base: Spread | None) -> str:
    ours = line.at.get(ratio)
    if line.label == "uniform" or ours is None or base is None or not base.mean:
        return ""
    return f" ({text.percent(100 * (ours.mean / base.mean - 1))})"


def spread(value: Spread | None) -> str:
    """A mean, and the standard deviation when there are several."""
    if value is None:
        return text.MISSING
    if value.deviation is None:
        return text.digits(value.mean)
    return f"{text.digits(value.mean)} ± {text.digits(value.deviation, 2)}"


def unread_cells(runs: Sequence[Seen]) -> tuple[list[str], list[list[str]]]:
    """Runs without rows, and why."""
    return ["run", "state", "why"], [[run.name, run.state, run.reason] for run in runs]


def table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """An aligned Markdown table; columns of words stand left, those of numbers right."""
    clean = [[c.replace("|", "\\|").replace("\n", " ") for c in line] for line in [heads, *lines]]
    widths = [max(3, *(len(line[place]) for line in clean)) for place in range(len(heads))]
    left = [head in (*WORDS, "", "search", "state", "why") for head in heads]

    def line(values: Sequence[str]) -> str:
        shown = [v.ljust(w) if s else v.rjust(w) for v, w, s in zip(values, widths, left, strict=True)]
        return f"| {' | '.join(shown)} |"

    rule = ["-" * w if s else "-" * (w - 1) + ":" for w, s in zip(widths, left, strict=True)]
    return "\n".join([line(clean[0]), line(rule), *map(line, clean[1:])])
