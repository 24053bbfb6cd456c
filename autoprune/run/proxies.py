"""proxies.md of a run: how well each proxy would have ranked the plans that its search evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from autoprune.evaluation import Failure, StreamEvaluator
from autoprune.ledger import Ledger
from autoprune.objective import Fidelity, Split
from autoprune.report.correlation import LEAST, Tau, ranking
from autoprune.report.files import write_text
from autoprune.run.finals import quality_metric
from autoprune.run.supernets import ladders_by_phase
from autoprune.space import Candidate

if TYPE_CHECKING:
    import pandas as pd

    from autoprune.run.pipeline import Run

FILE = "proxies.md"
PLANS = 64  # of the search's, drawn evenly: what the table costs is this many evaluations by each proxy
BASELINE = "params"


def write_proxies(run: Run, ledger: Ledger) -> str | None:
    """Write the table; a sentence for the report, None when there is no proxy or too little to rank."""
    chosen = [e for e in run.parts.evaluators if isinstance(e, StreamEvaluator)]
    metric = quality_metric(run.objectives)
    rows = sample(_own(ledger), metric)
    if not chosen or len(rows) < LEAST:
        return None
    start, stop = int(rows["start"].iloc[0]), int(rows["stop"].iloc[0])
    few = Fidelity(Split.FITNESS, (start, min(stop, start + int(run.cfg.sequences))))
    plans = [run.space.decode(Candidate.from_json(text)) for text in rows["candidate"]]
    with run.progress.stage("ranking proxies"):
        outcomes = run.parts.evaluation(chosen, only=Split.FITNESS).evaluate(plans, few)
    kept = [i for i, o in enumerate(outcomes) if not isinstance(o, Failure)]
    figures = {BASELINE: [float(rows[BASELINE].iloc[i]) for i in kept]}
    for name in (m for e in chosen for m in e.metrics):
        figures[name] = [o.metrics[name] for o in outcomes if not isinstance(o, Failure)]
    quality = [-float(rows[metric].iloc[i]) for i in kept]
    found = {name: ranking(values, quality) for name, values in figures.items()}
    write_text(run.path / FILE, _text(found, len(kept), metric, (stop - start, few.count)))
    return _sentence(found)


def _own(ledger: Ledger) -> pd.DataFrame:
    """The search's results on the run's own ladders: others are other models."""
    frame = ledger.to_frame()
    return frame[~frame["phase"].isin(list(ladders_by_phase(ledger)))] if len(frame) else frame


def sample(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Different plans that were evaluated on one set of windows, the largest that most were; at most `PLANS`."""
    if metric not in frame:
        return frame.iloc[:0]
    usable = frame[(frame["status"] == "ok") & (frame["split"] == Split.FITNESS.value)]
    usable = usable.drop_duplicates(["key", "start", "stop"])
    sizes = usable["stop"] - usable["start"]
    usable = usable[sizes == sizes.max()]
    if not len(usable):
        return usable
    start, stop = usable.groupby(["start", "stop"]).size().idxmax()
    usable = usable[(usable["start"] == start) & (usable["stop"] == stop)]
    places = np.unique(np.linspace(0, len(usable) - 1, min(PLANS, len(usable))).round().astype(int))
    return usable.iloc[places]


def _text(found: Mapping[str, Tau | None], plans: int, metric: str, windows: tuple[int, int]) -> str:
    base = found[BASELINE]
    lines = ["# Proxies", "", NOTE.format(plans=plans, metric=metric, whole=windows[0], few=windows[1]), ""]
    lines += ["| figure | tau | rho | tau of the parameter count | |", "|---|---|---|---|---|"]
    for name, rank in found.items():
        cells = ["constant", "–"] if rank is None else [rank.cell, f"{rank.rho:+.2f}"]
        beside = "constant" if base is None else f"{base.value:+.2f}"
        lines.append(f"| {name} | {' | '.join(cells)} | {beside} | {_verdict(name, rank, base)} |")
    return "\n".join([*lines, ""])


def _verdict(name: str, rank: Tau | None, base: Tau | None) -> str:
    if name == BASELINE:
        return "baseline"
    if rank is None:
        return "ranks nothing"
    return "better than counting" if _beats(rank, base) else "no better than counting"


def _beats(rank: Tau | None, base: Tau | None) -> bool:
    """Whichever way it ranks: its sign can be learnt."""
    return rank is not None and abs(rank.value) > (0.0 if base is None else abs(base.value))


def _sentence(found: Mapping[str, Tau | None]) -> str:
    base = found[BASELINE]
    others: Sequence[str] = [n for n in found if n != BASELINE]
    better = [n for n in others if _beats(found[n], base)]
    count = "nothing" if base is None else f"tau {base.value:+.2f}"
    named = f" ({', '.join(better)})" if better else ""
    return (
        f"{len(better)} of {len(others)} proxies{named} rank this search's plans better than their parameter "
        f"count ({count}); see {FILE}."
    )


NOTE = (
    "How well each figure ranks {plans} plans of this search by {metric} on {whole} fitness windows: Kendall's tau "
    "with a bootstrap interval of 95 % over plans, and Spearman's rho; + where larger goes with better. "
    "Proxies saw {few} of the windows. A search's plans are no random sample: they crowd where it looked."
)
