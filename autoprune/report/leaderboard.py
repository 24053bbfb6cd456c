"""leaderboard.csv and leaderboard.md of a run folder, and the table printed when a run ends."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from rich.table import Table
from rich.text import Text

from autoprune.errors import LedgerError
from autoprune.kv_policy import FULL
from autoprune.report import text
from autoprune.report.files import replace, write_text
from autoprune.report.recovered import beside as with_recovered
from autoprune.report.rows import (
    COLUMNS,
    COUNTS,
    LADDERS,
    NUMBERS,
    RECOVERED,
    TEXT,
    baselines,
    complete,
    dense,
    front,
    interval,
    number,
    quality,
    quality_label,
    size_column,
    spread,
    word,
)
from autoprune.report.summary import beside, change

__all__ = ["COLUMNS", "REBUILT", "markdown", "read", "terminal", "write"]


def write(rows: pd.DataFrame, folder: Path) -> None:
    """Write leaderboard.csv (exact floats, empty where not measured) and leaderboard.md, each atomically.

    What recovered.csv says of a key stands beside its other figures, in columns of its own.
    """
    rows = with_recovered(rows, folder)
    write_csv(complete(rows), Path(folder) / "leaderboard.csv")
    write_text(Path(folder) / "leaderboard.md", markdown(rows))


def write_csv(rows: pd.DataFrame, path: Path) -> Path:
    """Write rows with exact floats and whole counts, atomically."""
    frame = rows.astype(dict.fromkeys(COUNTS, "Int64"))
    return replace(path, lambda temporary: frame.to_csv(temporary, index=False))


def read(folder: Path) -> pd.DataFrame:
    """The rows of a run folder; raises LedgerError when leaderboard.csv is missing or not ours."""
    path = Path(folder) / "leaderboard.csv"
    if not path.is_file():
        raise LedgerError(f"no leaderboard.csv in {folder}: give the folder of a run that wrote one")
    try:
        # As text: a key such as "12345e678901" must not become a number, nor a method "None" a gap.
        rows = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    except (ValueError, OSError) as error:
        raise LedgerError(f"{path} cannot be read as a leaderboard: {str(error).splitlines()[0]}") from error
    missing = [c for c in COLUMNS if c not in rows.columns]
    if missing:
        raise LedgerError(f"{path} is not a leaderboard: it has no column {missing[0]!r}")
    rows = rows.reindex(columns=[*rows.columns, *(c for c in (*RECOVERED, LADDERS) if c not in rows.columns)])
    for column in rows.columns:
        if column not in TEXT:
            rows[column] = _numbers(rows[column], path)
    return rows


def _numbers(column: pd.Series, path: Path) -> pd.Series:
    """The exact floats that were written; columns that are not ours may hold words."""
    try:
        return pd.Series([float(value) for value in column], dtype=float)
    except ValueError as error:
        if column.name in NUMBERS:
            raise LedgerError(
                f"{path} is not a leaderboard: column {column.name!r} holds no numbers"
            ) from error
        return column


def _cells(row: pd.Series, frame: pd.DataFrame) -> list[str]:
    """One line of the table: see `_heads`."""
    column = quality(frame)
    size, ours = number(row, size_column(frame)), number(row, column)
    baseline = beside(frame, size) if word(row, "name").startswith("front") else None
    return [
        word(row, "name"),
        text.ratio(size),
        text.kl(ours),
        text.digits(number(row, _further(frame)[1])),
        f"{text.kl(baseline[1])} @{baseline[0]:.2f}" if baseline else text.MISSING,
        text.percent(change(ours, baseline[1])) if baseline else text.MISSING,
        text.ratio(number(row, "prefill_ratio")),
        text.ratio(number(row, "decode_ratio")),
        word(row, "key"),
        *([text.ratio(number(row, "kv_ratio"))] if _cuts_caches(frame) else []),
    ]


def _cuts_caches(frame: pd.DataFrame) -> bool:
    """Whether plans say what KV caches keep, so that parameters do not tell all of their size."""
    return bool(frame["plan"].astype(str).str.contains(f'"{FULL}"').any())


def _heads(frame: pd.DataFrame) -> list[str]:
    label = quality_label(quality(frame))
    size = size_column(frame).removesuffix("_ratio")
    heads = ["model", size, label, _further(frame)[0], "uniform KL", "change", "prefill", "decode", "key"]
    return [*heads, *(["kv"] if _cuts_caches(frame) else [])]


def _further(frame: pd.DataFrame) -> tuple[str, str]:
    """Head and column of what is shown beside the KL: `accuracy` of a classifier, else `perplexity`."""
    labelled = "accuracy_test" in frame and frame["accuracy_test"].notna().any()
    return ("accuracy", "accuracy_test") if labelled else ("perplexity", "perplexity_test")


def _ordered(frame: pd.DataFrame, limit: int) -> pd.DataFrame:
    """Dense first, then at most `limit` front rows and all baselines by falling size."""
    first = dense(frame)
    body = pd.concat([baselines(frame), spread(front(frame), limit)])
    body = body.sort_values([size_column(frame), "kv_ratio"], ascending=False, kind="stable")
    return body if first is None else pd.concat([first.to_frame().T, body])


def markdown(rows: pd.DataFrame) -> str:
    """The leaderboard as a Markdown table, all rows, with the measured intervals."""
    frame = complete(rows)
    extra = [c for c in RECOVERED if frame[c].notna().any()]
    heads = [*_heads(frame), *extra]
    rule = ["---", *["---:"] * 7, "---", *["---:"] * (len(heads) - 9)]
    lines = ["# Leaderboard", "", _line(heads), _line(rule)]
    for _, row in _ordered(frame, len(frame)).iterrows():
        cells = _cells(row, frame)
        for place, phase in ((6, "prefill"), (7, "decode")):
            cells[place] = f"{cells[place]} {text.bounds(interval(row, phase))}".rstrip()
        recovered = [text.digits(number(row, column)) for column in extra]
        key = f"`{cells[8]}`" if cells[8] else text.MISSING
        lines.append(_line([*cells[:8], key, *cells[9:], *recovered]))
    rebuilt = [REBUILT] if frame[LADDERS].notna().any() else []
    dense = frame.loc[frame["name"] == "dense", "params_ratio"]
    narrower = [NARROWER] if (dense < 1 - 1e-9).any() else []
    return "\n".join([*lines, "", NOTE, *rebuilt, *narrower, ""])


NOTE = (
    "Ratios are to dense; params counts block parameters; a dash means not measured. `uniform KL` is that of the "
    "smallest uniform model that is not smaller (by more than 0.01), its size after the @; `change` is against it."
)
NARROWER = (
    "The hidden width was cut before the search: the dense row is the narrower model with all its units; ratios and "
    "KL are to the model as given."
)
REBUILT = (
    "Searched plans use ladders rebuilt around what the search had found; uniform and dense rows use the run's own, "
    "refit against the dense model."
)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(c.replace("|", "\\|").replace("\n", " ") for c in cells) + " |"


def terminal(rows: pd.DataFrame, limit: int = 12) -> Table:
    """The table at the end of a run: dense first, front rows evenly spread, uniform rows beside them."""
    frame = complete(rows)
    table = Table(header_style="bold", pad_edge=False, box=None, padding=(0, 1, 0, 0))
    heads = _heads(frame)
    cells = [_cells(row, frame) for _, row in _ordered(frame, limit).iterrows()]
    bare = {
        i for i in (6, 7) if len(heads) > 9 and all(row[i] == text.MISSING for row in cells)
    }  # no latencies
    for place, head in enumerate(heads):
        if place in bare:
            continue
        head = "ppl" if head == "perplexity" else head  # so that a terminal of 80 columns holds the table
        table.add_column(head, justify="left" if place in (0, 8) else "right", no_wrap=True)
    styles = {"dense": "bold", "front": ""}
    for row in cells:
        style = styles.get(row[0], "yellow")
        table.add_row(*(Text(cell, style=style) for i, cell in enumerate(row) if i not in bare))
    return table
