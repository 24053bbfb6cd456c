"""The last stage: evaluators with items of their own score the rows of the leaderboard, the cheapest first."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from autoprune.errors import AutopruneError
from autoprune.evaluation import Failure, FinalEvaluator, Scores
from autoprune.forward import BuiltModel
from autoprune.ledger import Ledger
from autoprune.run.finals import Finalist, chunks
from autoprune.run.tasks import changes, differences
from autoprune.space import Plan

if TYPE_CHECKING:
    from autoprune.progress import Progress
    from autoprune.run.parts import Parts

FINALIST = "finalist"  # the ledger's event of one plan scored by one evaluator
ORDER = {"plan": 0, "supernet": 1, "model": 2}
CHUNK = 8  # plans scored between two records: what a crash may cost


def staged(evaluators: Mapping[str, FinalEvaluator]) -> list[tuple[str, FinalEvaluator]]:
    """In the order in which they are worth asking: plan, supernet, built model; the cheaper first."""
    return sorted(evaluators.items(), key=lambda item: (ORDER[item[1].needs], item[1].price(), item[0]))


def prepare_finals(parts: Parts) -> None:
    """Bind the evaluators before anything dear is done: a missing file or a short text is told at once."""
    for evaluator in parts.final_evaluators.values():
        evaluator.bind(parts.context())


def score_finalists(
    parts_of: Callable[[str], Parts], ledger: Ledger, finalists: Sequence[Finalist], progress: Progress
) -> dict[str, dict[str, float]]:
    """Metrics by finalist's name; what the ledger holds already is not scored again.

    `parts_of` gives the parts with the ladders of a name, the run's own for an empty one.
    """
    unique, own = {f.name: f for f in finalists}, parts_of("")
    found: dict[str, dict[str, float]] = {key: {} for key in unique}
    for name, evaluator in staged(own.final_evaluators):
        known = {e["key"]: e for e in ledger.events(FINALIST) if e["evaluator"] == name}
        missing, done = [f for key, f in unique.items() if key not in known], 0
        with progress.stage(f"finalists: {name}") as step:
            for chunk in chunks(missing, 1 if evaluator.needs == "model" else CHUNK):
                outcomes = evaluate(parts_of(chunk[0].ladders), evaluator, [f.plan for f in chunk])
                for finalist, outcome in zip(chunk, outcomes, strict=True):
                    known[finalist.name] = _record(ledger, name, finalist.name, outcome)
                done += len(chunk)
                step(done, len(missing))
        for key in unique:
            found[key] |= known[key]["metrics"]
    compared = changes(differences(items_of(ledger), own.dense_plan().key))
    return {key: {**metrics, **compared.get(key, {})} for key, metrics in found.items()}


def evaluate(parts: Parts, evaluator: FinalEvaluator, plans: Sequence[Plan]) -> list[Scores | Failure]:
    """Scores of the plans; a plan that fails by itself does not disturb the others."""
    try:
        if evaluator.needs == "model":
            return evaluator.evaluate(BuiltModel(parts.build(plans[0], dtype=torch.float32)), plans)
        return evaluator.evaluate(parts.supernet, plans)
    except (AutopruneError, OSError, MemoryError):
        raise
    except Exception as error:
        if len(plans) == 1:
            return [Failure(" ".join(f"{type(error).__name__}: {error}".split()))]
    return [outcome for plan in plans for outcome in evaluate(parts, evaluator, [plan])]


def items_of(ledger: Ledger) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Values an item: evaluator -> finalist's name -> metric."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}
    for event in ledger.events(FINALIST):
        found.setdefault(event["evaluator"], {})[event["key"]] = event["items"]
    return found


def _record(ledger: Ledger, name: str, key: str, outcome: Scores | Failure) -> dict[str, Any]:
    payload: dict[str, Any] = {"evaluator": name, "key": key, "metrics": {}, "items": {}}
    if isinstance(outcome, Failure):
        ledger.event("failed_final", key=key, reason=f"{name}: {outcome.reason}")
    else:
        payload["metrics"] = {m: v for m, v in outcome.metrics.items() if math.isfinite(v)}
        payload["items"] = {m: [float(x) for x in v] for m, v in outcome.per_window.items()}
    ledger.event(FINALIST, **payload)
    return payload
