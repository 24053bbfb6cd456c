"""Finalists of a search measured against its latency targets, between phases; and what to say of them at the end."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pandas as pd

from autoprune.errors import MeasurementError
from autoprune.ledger import Ledger, Recorded
from autoprune.objective import Fidelity
from autoprune.report import text
from autoprune.report.rows import dense as dense_row
from autoprune.report.rows import interval, number
from autoprune.report.summary import verdict
from autoprune.run import finals
from autoprune.run.choosing import picked
from autoprune.run.finals import Finalist
from autoprune.run.keeping import (
    ABOVE,
    BELOW,
    KEPT,
    LATENCIES,
    Correction,
    KeptDriver,
    Timed,
    correction_of,
    latencies,
    off,
    relative,
)
from autoprune.run.latency import measure_plans
from autoprune.run.ranking import selected
from autoprune.run.targets import PHASE, Target, TargetsDriver
from autoprune.space import Candidate

if TYPE_CHECKING:
    from autoprune.hardware.endtoend import Measured
    from autoprune.run.pipeline import Run

MEASURED = 5  # finalists of a phase and target that are measured
Known = dict[tuple[str, Fidelity], Recorded]


def keep(run: Run, ledger: Ledger, driver: TargetsDriver) -> bool:
    """Measure the finalists of phases that ended since; whether there is a further phase to run."""
    if not isinstance(driver, KeptDriver) or not (todo := driver.unmeasured(ledger)):
        return False
    chosen = {slot: _finalists(run, ledger, driver, slot, phase) for slot, phase in todo.items()}
    plans = {f.plan.key: f.plan for found in chosen.values() for f, _, _ in found}
    times: dict[str, Measured] = {}
    try:
        times = measure_plans(run.parts, plans, run.progress) if plans else {}
    except MeasurementError as error:
        ledger.event("note", text=f"Latency targets were not checked during the search: {error}.")
    for slot, phase in todo.items():
        found = [_timed(f, c, quality, times[f.plan.key]) for f, c, quality in chosen[slot] if times]
        event = driver.judged(slot, phase, found, _correction(run, ledger, slot), ledger)
        ledger.event(KEPT, **event)
        for target in (t for t in driver.of(slot) if found):
            run.progress.say(_line(target, found, driver, event["again"]))
    return driver.next(ledger) is not None


def earlier(ledger: Ledger, driver: TargetsDriver, number: int) -> Known:
    """What a further phase need not evaluate again: all that the phases before it did."""
    if not isinstance(driver, KeptDriver) or number < driver.count:
        return {}
    return {
        (r.key, r.result.proposal.fidelity): r
        for phase, r in ledger.recorded()
        if phase < number and r.origin in ("evaluated", "adopted")
    }


def sentences(run: Run, frame: pd.DataFrame, best: pd.Series | None) -> list[str]:
    """A sentence for every target with bounds on times: measured at what, kept or missed by how much."""
    found = []
    for target in (t for t in run.targets if latencies(t)):
        rows = frame[frame["name"] == f"target@{target.name}"] if len(run.targets) > 1 else None
        row = best if rows is None else (rows.iloc[0] if len(rows) else None)
        if row is not None:
            found += [_sentence(target, row, frame)]
    return found


def _sentence(target: Target, row: pd.Series, frame: pd.DataFrame) -> str:
    parts = []
    for bound in latencies(target):
        value = number(row, f"{bound.metric}_{'ratio' if relative(bound) else 'ms'}")
        if value is None:
            return f"Target {target.name}: not measured."
        wanted = float(bound.text[:-1]) if relative(bound) else bound.bound
        share = value / wanted - 1
        kept = BELOW <= share <= ABOVE
        word = (
            "kept"
            if kept
            else f"{'missed, ' if share > 0 else ''}{abs(share):.1%} {'above' if share > 0 else 'below'}"
        )
        shown = text.ratio(value) if relative(bound) else f"{value:.3g} ms"
        told = verdict(row, dense_row(frame), bound.metric)
        beside = ", not told apart from dense" if told == "not told apart" else ""
        between = f" {text.bounds(interval(row, bound.metric))}" if relative(bound) else ""
        parts.append(f"{bound.metric} measured {shown}{between} ({word}{beside})")
    return f"Target {target.name}: {'; '.join(parts)}."


def _finalists(
    run: Run, ledger: Ledger, driver: KeptDriver, slot: int, phase: int
) -> list[tuple[Finalist, Candidate, float]]:
    """Of every target of a slot the best few of its last phase, with their quality on *selection*."""
    space, targets, frame = driver.space(phase, ledger), driver.of(slot), ledger.to_frame()
    rows = frame[frame["phase"] == phase] if len(frame) else frame
    events = [e for e in ledger.events(PHASE) if e["number"] == phase]
    dense = run.space.decode(run.space.dense)
    candidates = picked(
        rows, finals.chosen(events), space, dense, run.objectives, targets, int(run.cfg.finalists)
    )
    found = {c: finals.finalist(space, c) for c in candidates}
    quality = finals.quality_metric(run.objectives)
    scores = selected(run, ledger, list(found.values()))
    ranked = sorted(
        (c for c in found if found[c].name in scores), key=lambda c: scores[found[c].name][quality]
    )
    chosen: dict[Candidate, None] = {}
    for target in targets:
        within = [c for c in ranked if target.met(found[c].costs) and found[c].plan != dense]
        chosen |= dict.fromkeys(within[:MEASURED])
    return [(found[c], c, scores[found[c].name][quality]) for c in chosen]


def _timed(found: Finalist, candidate: Candidate, quality: float, times: Measured) -> Timed:
    ratio, ms = {}, {}
    for m in (m for m in LATENCIES if getattr(times, f"{m}_ratio") is not None):
        ratio[m] = [float(getattr(times, f"{m}_ratio{end}")) for end in ("", "_low", "_high")]
        ms[m] = [float(getattr(times, f"{m}{end}")) for end in ("_ms", "_low", "_high")]
    costs = {m: float(found.costs[m]) for m in ratio}
    return Timed(candidate.to_json(), quality, costs, ratio, ms)


def _correction(run: Run, ledger: Ledger, slot: int) -> Correction:
    """That under which the last phase of a slot was searched."""
    events = [e for e in ledger.events(KEPT) if int(e["slot"]) == slot]
    assert run.table is not None
    return correction_of(events[-1]) if events else run.table.correction


def _line(target: Target, found: Sequence[Timed], driver: KeptDriver, again: bool) -> str:
    nearest = min(found, key=lambda t: abs(off(target, t, driver.dense)))
    told = f"target {target.name}: measured {off(target, nearest, driver.dense):+.1%} from it at the nearest"
    return told + ("; searching on with the corrected table" if again else "")
