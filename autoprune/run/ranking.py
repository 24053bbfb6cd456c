"""Which plans a run shows: finalists of the search, the front, baselines; all on held-out splits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING

from autoprune.evaluation import Evaluation, StreamEvaluator
from autoprune.ledger import Ledger
from autoprune.objective import Split
from autoprune.report.leaderboard import REBUILT
from autoprune.run import finals
from autoprune.run.choosing import picked
from autoprune.run.finalists import score_finalists
from autoprune.run.parts import Parts, held_out, search_evaluators
from autoprune.run.supernets import ladders_by_phase, parts_with
from autoprune.run.targets import PHASE, TargetsDriver

if TYPE_CHECKING:
    from autoprune.run.pipeline import Run


def ranked(run: Run, ledger: Ledger, driver: TargetsDriver) -> list[finals.Entry]:
    """Dense, the best of every baseline, and the front, with their metrics on selection and test."""
    cfg, dense = run.cfg, finals.finalist(run.space, run.space.dense)
    parts_of = _parts_of(run, ledger)
    scorer = finals.Scorer(_evaluations(run, parts_of), ledger)
    found = [f for f in _finalists(run, ledger, driver) if f.name != dense.name]
    wanted = list(cfg.baselines), list(cfg.uniform)
    baselines = finals.baseline_entries(run.space, *wanted, run.parts.baselines.named)
    everyone = [dense, *found, *(f for group in baselines.values() for f in group)]
    with run.progress.stage("finalists on selection") as step:
        selected = scorer.score(everyone, held_out(cfg, run.parts.corpus, Split.SELECTION), step)
    named = _named(run, found, baselines, selected)
    with run.progress.stage("front on test") as step:
        tested = scorer.score([f for _, f in named], held_out(cfg, run.parts.corpus, Split.TEST), step)
    own = score_finalists(parts_of, ledger, [f for _, f in named], run.progress)
    if any(f.ladders for f in found):
        ledger.event("note", text=REBUILT)
    return [_entry(name, f, selected, tested, own) for name, f in named]


def selected(run: Run, ledger: Ledger, found: Sequence[finals.Finalist]) -> finals.Scores:
    """Finalists on *selection*, before the search is over; the ledger remembers them."""
    scorer = finals.Scorer(_evaluations(run, _parts_of(run, ledger)), ledger)
    with run.progress.stage("finalists on selection") as step:
        return scorer.score(found, held_out(run.cfg, run.parts.corpus, Split.SELECTION), step)


def _named(
    run: Run,
    found: list[finals.Finalist],
    baselines: dict[str, list[finals.Finalist]],
    selected: finals.Scores,
) -> list[tuple[str, finals.Finalist]]:
    """The rows of the leaderboard, chosen on selection."""
    quality = finals.quality_metric(run.objectives)
    named = [("dense", finals.finalist(run.space, run.space.dense))]
    for name, group in baselines.items():
        best = finals.best_of(group, selected, quality)
        named += [(name, best)] if best is not None else []
    front = finals.front_of(found, selected, run.objectives, int(run.cfg.front_points))
    named += [("front", f) for f in front]
    for target in run.targets if len(run.targets) > 1 else ():
        best = finals.best_of([f for f in found if target.met(f.costs)], selected, quality)
        named += [(f"target@{target.name}", best)] if best is not None else []
    return named


def _finalists(run: Run, ledger: Ledger, driver: TargetsDriver) -> list[finals.Finalist]:
    """Of every supernet's last phases their share, each plan once."""
    frame, ladders, rivals = ledger.to_frame(), ladders_by_phase(ledger), driver.rivals(ledger)
    limit, dense = max(1, int(run.cfg.finalists) // len(rivals)), run.space.decode(run.space.dense)
    found: dict[str, finals.Finalist] = {}
    for alternatives in rivals:
        for phases in alternatives:
            space, name = driver.space(phases[-1], ledger), ladders.get(phases[-1], "")
            events = [e for e in ledger.events(PHASE) if e["number"] in phases]
            rows = frame[frame["phase"].isin(phases)] if len(frame) else frame
            named = finals.chosen(events)
            if chosen := picked(rows, named, space, dense, run.objectives, run.targets, limit):
                found |= {f.name: f for f in (finals.finalist(space, c, name) for c in chosen)}
                break
    return list(found.values())


def _parts_of(run: Run, ledger: Ledger) -> Callable[[str], Parts]:
    """The run's parts by the name of their ladders, each supernet opened once."""

    @cache
    def of(ladders: str) -> Parts:
        return parts_with(run.parts, ledger, ladders, run.progress)

    return of


def _evaluations(run: Run, parts_of: Callable[[str], Parts]) -> finals.Evaluations:
    """A proxy scores finalists only where it was searched on: `write_proxies` says what it is worth."""

    @cache
    def of(ladders: str) -> Evaluation:
        parts = parts_of(ladders)
        searched = search_evaluators(parts, run.objectives)
        chosen = [e for e in parts.evaluators if e in searched or not isinstance(e, StreamEvaluator)]
        return parts.evaluation(chosen)

    return of


def _entry(
    name: str,
    found: finals.Finalist,
    selected: finals.Scores,
    tested: finals.Scores,
    own: finals.Scores,
) -> finals.Entry:
    metrics = {
        Split.SELECTION.value: selected.get(found.name, {}),
        Split.TEST.value: tested.get(found.name, {}),
    }
    return finals.Entry(name, found, metrics, own.get(found.name, {}))
