"""After the search: finalists on *selection*, the front, the baselines, and both on *test*."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from autoprune.evaluation import Evaluation, Failure
from autoprune.ledger import Ledger
from autoprune.objective import Fidelity, Objective, Split, non_dominated
from autoprune.run.baselines import Named, baseline_candidates
from autoprune.space import Candidate, Plan, Space
from autoprune.study import Searcher

if TYPE_CHECKING:
    import pandas as pd

Step = Callable[[int, int], None]
Evaluations = Callable[[str], Evaluation]  # by the name of ladders
Scores = dict[str, dict[str, float]]  # metrics by finalist's name
CHUNK = 8  # plans scored per transaction group: what a crash may cost
EXTRA = 8  # finalists by quality alone, when the front of the search is short
NAMED = "finalists"  # in the event of a finished phase
QUALITY = (
    "kl",
    "nll",
    "perplexity",
    "kl_full",
    "bits_per_byte",
    "disagreement",
    "error_rate",
    "cross_entropy",
    "task_loss",
    "task_error",
)


@dataclass(frozen=True)
class Finalist:
    """A plan with its costs; `ladders` names those that hold its weights, empty for the run's own."""

    plan: Plan
    costs: Mapping[str, float]
    ladders: str = ""

    @property
    def name(self) -> str:
        """Under which its scores are remembered: a plan on other ladders is another model."""
        return f"{self.plan.key}@{self.ladders}" if self.ladders else self.plan.key


@dataclass(frozen=True)
class Entry:
    """A row of the leaderboard in the making."""

    name: str  # dense, uniform@r or front
    finalist: Finalist
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # by split
    own: Mapping[str, float] = field(default_factory=dict)  # of evaluators with items of their own

    @property
    def plan(self) -> Plan:
        """What every block keeps."""
        return self.finalist.plan

    def quality(self, split: Split, metric: str = "kl") -> float:
        """A metric on a split, infinite when the plan failed there."""
        return self.metrics.get(split.value, {}).get(metric, float("inf"))


class Scorer:
    """Scores finalists on a held-out split, remembering them in the ledger; `evaluation` is that of given ladders."""

    def __init__(self, evaluation: Evaluations, ledger: Ledger) -> None:
        self._evaluation = evaluation
        self._ledger = ledger

    def score(self, found: Sequence[Finalist], fidelity: Fidelity, step: Step) -> Scores:
        """Metrics by finalist's name; those that fail are absent (and noted as an event)."""
        known = self._ledger.finals(fidelity)
        missing = list({f.name: f for f in found if f.name not in known}.values())
        done = 0
        for chunk in chunks(missing, CHUNK):
            known |= self._scored(chunk, fidelity)
            done += len(chunk)
            step(done, len(missing))
        return {f.name: known[f.name] for f in found if f.name in known}

    def _scored(self, chunk: Sequence[Finalist], fidelity: Fidelity) -> Scores:
        outcomes = self._evaluation(chunk[0].ladders).evaluate([f.plan for f in chunk], fidelity)
        scores = {}
        for finalist, outcome in zip(chunk, outcomes, strict=True):
            if isinstance(outcome, Failure):
                self._ledger.event("failed_final", key=finalist.name, reason=outcome.reason)
            else:
                self._ledger.record_final(finalist.name, fidelity, outcome.metrics, outcome.per_window)
                scores[finalist.name] = dict(outcome.metrics)
        return scores


def chunks(found: Sequence[Finalist], size: int) -> Iterator[list[Finalist]]:
    """Up to `size` finalists at a time, those of one supernet together."""
    for ladders in dict.fromkeys(f.ladders for f in found):
        group = [f for f in found if f.ladders == ladders]
        yield from (group[start : start + size] for start in range(0, len(group), size))


def named(searcher: Searcher) -> dict[str, list[str]]:
    """The finalists that a searcher names, for the event of its phase; empty when it leaves that to its results."""
    choose = getattr(searcher, "finalists", None)
    return {} if choose is None else {NAMED: [c.to_json() for c in choose()]}


def chosen(events: Sequence[Mapping[str, Any]]) -> list[Candidate]:
    """The finalists that the phases' searchers named: of every phase the first, then of every phase the second, …"""
    lists = [event.get(NAMED, []) for event in events]
    texts = [text for row in zip_longest(*lists) for text in row if text is not None]
    return [Candidate.from_json(text) for text in dict.fromkeys(texts)]


def finalists(frame: pd.DataFrame, objectives: Sequence[Objective], limit: int) -> list[Candidate]:
    """The non-dominated candidates of a search on its largest fidelity; best ones beside them when these are few.

    Results are compared on the same windows only. A method that draws windows afresh has a front for each; those of
    the latest windows come first, until there are `limit`. A single front is thinned evenly.
    """
    usable = frame[frame["status"] == "ok"] if len(frame) else frame
    if not len(usable):
        return []
    windows = usable["stop"] - usable["start"]
    usable = usable[windows == windows.max()]
    latest: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in reversed(usable.to_dict("records")):
        latest.setdefault((row["start"], row["stop"]), []).append(row)
    found: dict[Candidate, None] = {}
    for rows in latest.values():
        least = min(EXTRA, limit) - len(found)
        for candidate in _best(rows, objectives, limit, least):
            if len(found) < limit:
                found.setdefault(candidate)
    return list(found)


def _best(
    rows: Sequence[Mapping[str, Any]], objectives: Sequence[Objective], limit: int, least: int
) -> list[Candidate]:
    """The non-dominated of rows on the same windows, at least `least` where there are so many; best quality first."""
    once = list({str(row["key"]): row for row in reversed(rows)}.values())
    points = [[o.value(row) for o in objectives] for row in once]
    chosen = non_dominated(points)
    ranked = sorted(range(len(points)), key=lambda i: points[i][0])
    chosen += [i for i in ranked if i not in chosen][: max(0, least - len(chosen))]
    kept = thin(chosen, [p[-1] for p in points], limit)
    return [Candidate.from_json(str(once[i]["candidate"])) for i in sorted(kept, key=lambda i: points[i][0])]


def thin(indices: Sequence[int], position: Sequence[float], limit: int) -> list[int]:
    """At most `limit` indices, evenly spread over their positions, both ends kept."""
    order = sorted(indices, key=lambda i: position[i])
    while len(order) > limit:
        gaps = [position[order[k + 1]] - position[order[k - 1]] for k in range(1, len(order) - 1)]
        order.pop(1 + gaps.index(min(gaps)) if gaps else -1)
    return order


def finalist(space: Space, candidate: Candidate, ladders: str = "") -> Finalist:
    """A candidate of a space, with weights from given ladders."""
    return Finalist(space.decode(candidate), space.cost(candidate), ladders)


def baseline_entries(
    space: Space, names: Sequence[str], ratios: Sequence[float], named: Named | None = None
) -> dict[str, list[Finalist]]:
    """The plans of every `NAME@RATIO` that has some, on the run's own ladders; of a name, falling as given.

    Ratios are of block parameters, of FLOPs in a space that leaves those as they are.
    """
    least, dense = (space.cost(c)["params"] for c in (Candidate((0,) * len(space.genes)), space.dense))
    metric = "params" if least < dense else "flops"
    found = {
        f"{name}@{ratio:g}": [
            finalist(space, c) for c in baseline_candidates(space, name, ratio, metric, named)
        ]
        for name in names
        for ratio in ratios
    }
    return {name: group for name, group in found.items() if group}


def best_of(found: Sequence[Finalist], scores: Scores, metric: str) -> Finalist | None:
    """The finalist of lowest metric on selection."""
    rated = [(scores[f.name][metric], i) for i, f in enumerate(found) if f.name in scores]
    return found[min(rated)[1]] if rated else None


def front_of(
    found: Sequence[Finalist], scores: Scores, objectives: Sequence[Objective], limit: int
) -> list[Finalist]:
    """Non-dominated on selection quality and the cost objectives (params when there is none), thinned evenly."""
    rated = [f for f in found if f.name in scores]
    quality = quality_metric(objectives)
    costs = [o.metric for o in objectives if o.metric not in QUALITY] or ["params"]
    points = [[*(f.costs[m] for m in costs), scores[f.name][quality]] for f in rated]
    return [rated[i] for i in thin(non_dominated(points), [p[0] for p in points], limit)]


def quality_metric(objectives: Sequence[Objective]) -> str:
    """The first objective that is a quality metric, `kl` by default."""
    return next((o.metric for o in objectives if o.metric in QUALITY), "kl")
