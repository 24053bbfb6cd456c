"""Evaluations that do not fit into memory: tried again with smaller micro-batches, which their results say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from autoprune.evaluation import Evaluation, Failure, Scores
    from autoprune.objective import Fidelity
    from autoprune.space import Plan

WORDS = ("can't allocate memory", "out of memory", "cannot allocate memory", "alloc_cpu")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory, here or on a device, was not enough; torch has kinds of its own."""
    if isinstance(error, MemoryError):
        return True
    said = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in said for words in WORDS)


def evaluate_within(
    evaluation: Evaluation, plans: Sequence[Plan], fidelity: Fidelity, sequences: int | None = None
) -> list[Scores | Failure]:
    """Scores of each plan, with micro-batches of `sequences` windows, or as many as the evaluation's own.

    What does not fit is tried plan by plan, then with half as many windows at a time, again and again: the score's
    `note` says so, since the last bits may depend on it. A plan that does not even fit with one window is a failure.
    """
    usual = evaluation.sequences
    size = usual if sequences is None else sequences
    try:
        found = evaluation.evaluate(plans, fidelity, size)
    except MemoryError:
        if len(plans) > 1:
            return [o for plan in plans for o in evaluate_within(evaluation, [plan], fidelity, sequences)]
        if size > 1:
            return evaluate_within(evaluation, plans, fidelity, size // 2)
        from autoprune.evaluation import Failure

        return [Failure(f"plan {plans[0].key}: out of memory, even with one window in a micro-batch")]
    if size == usual:
        return found
    return [noted(outcome, size, usual) for outcome in found]


def noted(outcome: Scores | Failure, size: int, usual: int) -> Scores | Failure:
    """The same, with a note that its micro-batches were smaller."""
    from autoprune.evaluation import Failure

    if isinstance(outcome, Failure):
        return outcome
    return replace(outcome, note=f"micro-batches of {size} windows: no memory for {usual}")
