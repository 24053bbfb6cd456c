"""All rows of all finished runs in one frame."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from autoprune.errors import LedgerError
from autoprune.report import leaderboard, recovered
from autoprune.report.rows import COLUMNS
from autoprune.report.rows import is_baseline as rows_of_baselines
from autoprune.runs import Seen, data_name, find_runs, model_name

STABLE = COLUMNS[: COLUMNS.index("name")]
RUN = ("run", "model", "corpus", "space", "ladders", "criterion", "objectives", "constraints", "state")
RECOVERED = ("recovered_from", *recovered.COLUMNS[1:])
MARK = "non_dominated"
OTHERS = tuple(c for c in COLUMNS if c not in (*STABLE, "plan"))
ALL = (*STABLE, *RUN, MARK, "hypervolume", *RECOVERED, *OTHERS, "plan")
UNRECOVERED = ("kl_fitness", "kl_selection", "kl_test", "perplexity_test")  # of the plan before its recovery
TIMES = ("prefill_ms", "prefill_ratio", "decode_ms", "decode_ratio")


@dataclass(frozen=True)
class Board:
    """`rows` has the columns `ALL` and `group`, what a row may be compared with; `unread` are runs without rows."""

    rows: pd.DataFrame
    runs: tuple[Seen, ...]
    unread: tuple[Seen, ...]


def read_board(folders: Iterable[str | Path]) -> Board:
    """The rows of every finished run in and below the folders; raises LedgerError when no run is finished."""
    tables, read, unread = [], [], []
    for run in find_runs(folders):
        try:
            if run.state != "finished":
                raise LedgerError(run.reason)
            tables.append(_rows(run))
            read.append(run)
        except LedgerError as error:
            unread.append(Seen(run.path, run.name, run.state, str(error), run.settings, run.meta, run.tokens))
    if not tables:
        more = f" (and {len(unread) - 1} more runs)" if len(unread) > 1 else ""
        raise LedgerError(f"no run is finished: {unread[0].name}: {unread[0].reason}{more}")
    return Board(pd.concat(tables, ignore_index=True), tuple(read), tuple(unread))


def _rows(run: Seen) -> pd.DataFrame:
    frame = leaderboard.read(run.path).drop(
        columns=list(RECOVERED), errors="ignore"
    )  # they get rows of their own
    frame = pd.concat([frame, *_recovered(run.path, frame)], ignore_index=True)
    about = {
        **{"run": run.name, "model": model_name(run.settings), "corpus": data_name(run.settings)},
        **{"space": "+".join(map(str, run.settings.get("space", {}))), "ladders": ladders(run.settings)},
        **{"criterion": str(_at(run.settings, "calibration", "criterion") or ""), "state": run.state},
        "objectives": ",".join(map(str, run.settings.get("objectives", []))),
        "constraints": ",".join(f"{k}={v}" for k, v in run.settings.get("constraints", {}).items()),
    }
    rebuilt = frame["ladders"].notna()  # a digest: by the plan that the search found
    frame = frame.assign(**about, group=comparable(run))
    frame["ladders"] = frame["ladders"].where(~rebuilt, frame["ladders"] + " (rebuilt)")
    own = [c for c in frame.columns if c not in (*ALL, "group")]
    return frame.reindex(columns=[*ALL, *own, "group"])


def _recovered(path: Path, frame: pd.DataFrame) -> list[pd.DataFrame]:
    """A row for every recovered checkpoint: the plan's costs, and never a number from before the recovery."""
    found = recovered.read(path)
    if not len(found):
        return []
    plans = frame[frame["key"].isin(found["key"])].drop_duplicates("key")
    costs = plans.drop(columns=[c for c in (*UNRECOVERED, *TIMES) if c in plans.columns])
    merged = found.merge(costs, on="key", how="left")
    return [merged.assign(name="recovered", recovered_from=merged["key"])]


def comparable(run: Seen) -> str:
    """What two runs must share for their test KL to be of the same thing: model, corpus, windows, divergence."""
    settings = run.settings
    kl = _at(settings, "evaluator", "divergence") or {}
    parts = [run.meta.get("model") or settings.get("model"), run.meta.get("corpus") or settings.get("data")]
    return json.dumps([*parts, settings.get("window"), settings.get("test_windows"), kl], sort_keys=True)


def title(settings: Mapping[str, Any]) -> str:
    """A group in words."""
    top = _at(settings, "evaluator", "divergence", "top_k")
    drawn = _at(settings, "evaluator", "divergence", "tail_samples")
    windows = f"{settings.get('test_windows')} test windows of {settings.get('window')} tokens"
    said = f"{model_name(settings)} on {data_name(settings)}, {windows}"
    said += f", KL on the top {top} tokens" if top else ""
    return said + (f" and {drawn} samples of the others" if top and drawn else "")


def ladders(settings: Mapping[str, Any]) -> str:
    """The kind of ladders, and what they were refit against when not dense; before there was a choice, nested."""
    kind = str(_at(settings, "calibration", "ladder") or "nested")
    reference = str(_at(settings, "calibration", "reference") or "dense")
    return kind if kind == "nested" or reference == "dense" else f"{kind} ({Path(reference).name})"


def _at(settings: Mapping[str, Any], *names: str) -> Any:
    found: Any = settings
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def fronts(rows: pd.DataFrame) -> pd.DataFrame:
    """Searched, unrecovered points."""
    return rows[rows["name"].astype(str).str.startswith("front")]


def baselines(rows: pd.DataFrame) -> pd.DataFrame:
    """Dense and baseline rows, each once however many runs have it, and of no run; a measured one if there is one."""
    hits = rows[is_baseline(rows)]
    order = hits["decode_ratio"].isna().sort_values(kind="stable").index
    once = hits.loc[order].drop_duplicates(["name", "key", "kl_test"]).sort_index()
    return once.assign(run="", constraints="", objectives="", seed=float("nan"))


def is_baseline(rows: pd.DataFrame) -> pd.Series:
    """Whether a row is the dense one's or a baseline's."""
    return (rows["name"] == "dense") | rows_of_baselines(rows)
