"""What a run leaves behind: leaderboard, report, pictures, and one exported checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from autoprune.data import corpus_name
from autoprune.ledger import Ledger
from autoprune.objective import Constraint, Split
from autoprune.report import html, leaderboard
from autoprune.report.facts import RunFacts
from autoprune.report.rows import LADDERS, spread
from autoprune.run import folder
from autoprune.run.export import export_plan
from autoprune.run.finalists import items_of
from autoprune.run.finals import Entry
from autoprune.run.int8 import in_int8
from autoprune.run.keeping import ABOVE, AIM
from autoprune.run.latency import origin
from autoprune.run.proxies import write_proxies
from autoprune.run.recovery import recovery_of
from autoprune.run.supernets import ladders_by_phase
from autoprune.run.tasks import differences, write_tasks
from autoprune.run.verdicts import sentences
from autoprune.runs import method
from autoprune.space import dense_costs

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.run.pipeline import Run

RATIOS = {"params": "params_ratio", "params_total": "params_total_ratio", "flops": "flops_ratio"}
RATIOS |= {"kv_bytes": "kv_ratio", "bytes": "bytes_ratio"}
EXPERTS = {"expert_bytes": "expert_ratio"}  # the same, a column of models with experts only
FURTHER = ("kl_full", "agreement", "bits_per_byte")  # metrics with a column where an evaluator gives them
CLASSES = (
    "accuracy",
    "macro_f1",
    "calibration_error",
    "cross_entropy",
    "recall_",
)  # beginnings of a classifier's
BEST_AT = 0.5  # params ratio of best/ when there are no constraints
FACTS = "facts.json"
NOTHING = "The search ended before it had evaluated a plan: the front is empty."


def write_outputs(
    run: Run, ledger: Ledger, entries: Sequence[Entry], measured: Mapping[str, Measured]
) -> None:
    """Leaderboard (csv, md), report.html with pictures, best/."""
    frame = rows(run, ledger, entries, measured)
    leaderboard.write(frame, run.path)
    tasks = write_tasks(entries, differences(items_of(ledger), run.parts.dense_plan().key), run.path)
    for told in (tasks, write_proxies(run, ledger)):
        if told is not None:
            ledger.event("note", text=told)
    for sentence in sentences(run, frame, best_row(run, frame)):
        ledger.event("note", text=sentence)
    facts = _facts(run, ledger)
    folder.write_json(run.path / FACTS, facts.__dict__)
    with run.progress.stage("writing the report"):
        html.write(frame, evaluated(ledger, dense_costs(run.space)["params"]), facts, run.path)
    _export_best(run, frame)


def rows(
    run: Run, ledger: Ledger, entries: Sequence[Entry], measured: Mapping[str, Measured]
) -> pd.DataFrame:
    """One row per entry, in the leaderboard's columns."""
    search, own = _searched(ledger), ladders_by_phase(ledger)
    done = {"tokens": ledger.tokens(), "evaluations": int((search["origin"] == "evaluated").sum())}
    dense = dense_costs(run.space)
    found = []
    for entry in entries:
        key, cost, ladders = entry.plan.key, entry.finalist.costs, entry.finalist.ladders
        row: dict[str, Any] = {
            "name": entry.name,
            "key": key,
            "seed": int(run.cfg.seed),
            "plan": entry.plan.to_json(),
        }
        found_by_search = entry.name == "front" or entry.name.startswith("target@")
        row["method"] = method(run.cfg) if found_by_search else entry.name.partition("@")[0]
        row |= done if found_by_search else {"tokens": 0, "evaluations": 0}
        row |= {
            name: cost[metric] / dense[metric]
            for metric, name in (RATIOS | EXPERTS).items()
            if metric in dense
        }
        row |= {f"{m}_pred_ms": cost[m] for m in ("prefill", "decode") if m in cost}
        row |= _times(measured.get(key))
        row[LADDERS] = ladders or None
        row["kl_fitness"] = _fitness(search[[own.get(p, "") == ladders for p in search["phase"]]]).get(key)
        row["kl_selection"] = entry.metrics[Split.SELECTION.value].get("kl")
        row["kl_test"] = entry.metrics[Split.TEST.value].get("kl")
        row["perplexity_test"] = entry.metrics[Split.TEST.value].get("perplexity")
        row |= _further(entry)
        found.append(row)
    further = dict.fromkeys(m for entry in entries for m in _further(entry))
    further |= dict.fromkeys(name for name in EXPERTS.values() if any(name in row for row in found))
    return pd.DataFrame(found).reindex(columns=[*leaderboard.COLUMNS, LADDERS, *further])


def _further(entry: Entry) -> dict[str, float]:
    """What further evaluators say: of the windows of *test*, and of items of their own."""
    tested = entry.metrics[Split.TEST.value]
    windows = {f"{m}_test": v for m, v in tested.items() if m in FURTHER or m.startswith(CLASSES)}
    return {**windows, **entry.own}


def _searched(ledger: Ledger) -> pd.DataFrame:
    """The search's results; the columns are there even when it ended before the first one."""
    frame = ledger.to_frame()
    return (
        frame if len(frame) else pd.DataFrame(columns=["phase", "key", "status", "origin", "start", "stop"])
    )


def _times(measured: Measured | None) -> dict[str, float | None]:
    if measured is None:
        return {}
    return {name: value for name, value in vars(measured).items() if name in leaderboard.COLUMNS}


def _fitness(search: pd.DataFrame) -> dict[str, float]:
    """Each plan's KL on the largest fidelity it was searched at."""
    if "kl" not in search:
        return {}
    usable = search[search["status"] == "ok"].copy()
    usable["windows"] = usable["stop"] - usable["start"]
    usable = usable.sort_values("windows", kind="stable").drop_duplicates("key", keep="last")
    return dict(zip(usable["key"], usable["kl"].astype(float), strict=True))


def evaluated(ledger: Ledger, dense_params: float) -> pd.DataFrame:
    """The cloud of evaluated candidates: params_ratio, kl, order."""
    frame = ledger.to_frame()
    if "kl" not in frame:
        return pd.DataFrame({"params_ratio": [], "kl": [], "order": []})
    frame = frame[(frame["status"] == "ok") & (frame["origin"] != "memory")]
    return pd.DataFrame(
        {"params_ratio": frame["params"] / dense_params, "kl": frame["kl"], "order": range(len(frame))}
    )


def _facts(run: Run, ledger: Ledger) -> RunFacts:
    search, telemetry = _searched(ledger), ledger.telemetry()
    cfg = run.cfg
    counts = {s: run.parts.corpus.count(s) for s in Split if s is not Split.TRAIN}
    return RunFacts(
        model=str(cfg.model),
        data=corpus_name(str(cfg.data)),
        data_digest=run.parts.corpus.digest,
        method=method(cfg),
        seed=int(cfg.seed),
        tokens_search=ledger.tokens(),
        tokens_setup=_setup_tokens(run, search, 1 + len(set(ladders_by_phase(ledger).values()))),
        tokens_final=_final_tokens(ledger, int(cfg.window)),
        evaluations=int((search["origin"] == "evaluated").sum()),
        failed=int((search["status"] == "failed").sum()),
        wall_seconds=sum(e["seconds"] for e in ledger.events("wall")),
        block_runs=int(telemetry.get("block_runs", 0)),
        block_runs_naive=int(telemetry.get("block_runs_naive", 0)),
        machine=_machine(int(cfg.threads), str(run.parts.device)),
        command=folder.command_of(run.path),
        finished=True,
        latency_error=_latency_error(run),
        notes=(*([said] if (said := origin(run.parts, run.table)) else []), *_notes(ledger, len(search))),
        splits={s.value: f"{n} windows of {int(cfg.window)} tokens" for s, n in counts.items()},
    )


def _latency_error(run: Run) -> dict[str, tuple[float, float]] | None:
    """Mean and largest relative error of predictions on held-out plans, per phase."""
    error = {} if run.table is None else run.table.error
    return {metric: (held.mean, held.largest) for metric, held in error.items()} or None


def _notes(ledger: Ledger, evaluations: int) -> tuple[str, ...]:
    """What a reader must know: an empty front, a measurement that was refused."""
    texts = [str(e["text"]) for e in ledger.events("note")]
    return tuple(dict.fromkeys(texts if evaluations else [NOTHING, *texts]))


def _setup_tokens(run: Run, search: pd.DataFrame, supernets: int) -> int:
    """Calibration, once for each supernet, plus the fitness windows the dense teacher was run on."""
    covered: set[int] = set()
    for start, stop in set(zip(search["start"], search["stop"], strict=True)):
        covered.update(range(start, stop))
    return supernets * int(run.parts.recipe.windows.size) + len(covered) * int(run.cfg.window)


def _final_tokens(ledger: Ledger, window: int) -> int:
    return ledger.final_windows() * window


def _machine(threads: int, device: str) -> str:
    from autoprune.hardware.fingerprint import fingerprint

    return ", ".join(f"{k} {v}" for k, v in fingerprint(threads, device).items() if v not in ("", None))


def best_row(run: Run, frame: pd.DataFrame) -> pd.Series | None:
    """The best point under the (last) constraints, or the one at half the block parameters; None without a front."""
    front = frame[frame["name"] == "front"]
    last, chosen = run.targets[-1], front
    if len(run.targets) > 1 and last.name:
        chosen = frame[frame["name"] == f"target@{last.name}"]
    if not len(front) or not len(chosen):
        return None
    return _constrained(run, last.constraints, chosen) if last.constraints else _half(front)


def _export_best(run: Run, frame: pd.DataFrame) -> None:
    """That point as a checkpoint.

    With a recovery it is recovered, and `points` further points of the front go to recovered/.
    """
    best = best_row(run, frame)
    if best is None:
        return
    recovery, front = recovery_of(run.cfg), frame[frame["name"] == "front"]
    wanted = {run.path / "best": best}
    if recovery is not None and recovery.points:
        others = spread(front[front["key"] != best["key"]], recovery.points)
        wanted |= {run.path / "recovered" / str(row["key"]): row for _, row in others.iterrows()}
    for to, row in wanted.items():
        if not to.exists():
            with run.progress.stage(f"exporting {to.relative_to(run.path)}/"):
                export_plan(run, row, to, bool(run.cfg.export.refit), recovery, in_int8(run.cfg))
    if recovery is not None:
        leaderboard.write(frame, run.path)


def _half(front: pd.DataFrame) -> pd.Series:
    below = front[front["params_ratio"] <= BEST_AT + 1e-9].sort_values("params_ratio")
    return below.iloc[-1] if len(below) else front.sort_values("params_ratio").iloc[0]


def _constrained(run: Run, constraints: Sequence[Constraint], front: pd.DataFrame) -> pd.Series:
    """The lowest selection KL among the points that meet latency bounds as *measured*; else the fastest one.

    Points that are a little slower than a bound, and still keep it, come second.
    """
    dense = dense_costs(run.space)
    measured = [(c, f"{c.metric}_ratio") for c in constraints if c.metric in ("prefill", "decode")]
    measured = [(c, column) for c, column in measured if front[column].notna().any()]
    for tolerance in (AIM, ABOVE):
        within = front
        for constraint, column in measured:
            bound = constraint.bound / dense[constraint.metric]
            within = within[within[column] <= (1 + tolerance) * bound]
        if len(within):
            return within.sort_values("kl_selection").iloc[0]
    return front.sort_values(measured[0][1]).iloc[0]
