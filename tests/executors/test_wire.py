"""What crosses to workers and back is what was sent, to the last bit."""

from __future__ import annotations

import numpy as np

from autoprune.evaluation import Failure, Scores
from autoprune.executors.wire import Asked, Scored
from autoprune.objective import Fidelity, Split
from autoprune.space import Plan


def test_a_piece_arrives_as_it_was_sent() -> None:
    asked = Asked(
        [Plan.of([(2, 48), (1, 24)]), Plan.of([(2, 48), (0, 0)])], Fidelity(Split.FITNESS, (2, 5)), 1
    )
    assert Asked.unpacked(asked.packed()) == asked


def test_outcomes_of_all_kinds_come_back_in_their_order_with_their_bits() -> None:
    def scores(metric: str, windows: int, note: str = "", kind: str = "float64") -> Scores:
        values = np.arange(windows).astype(kind) / 3 if kind == "float64" else np.arange(windows).astype(kind)
        return Scores({metric: float(values.mean())}, {metric: values}, note)

    sent = [
        scores("kl", 3),
        scores("kl", 3, "a smaller micro-batch"),
        Failure("NaN"),
        scores("kl", 2),
        scores("nll", 2),
        scores("nll", 2, kind="int64"),
        Scores({"memory": 1.0}, {}),
    ]
    back = Scored.unpacked(Scored(sent, 3, 7, 0.5).packed())
    assert (back.runs, back.naive_runs, back.thread_seconds) == (3, 7, 0.5)
    assert [_plain(o) for o in back.outcomes] == [_plain(o) for o in sent]


def test_a_batch_of_plans_is_small_on_its_way() -> None:
    """Plans share their sublayers; sent one by one they would take ten times as much."""
    plans = [Plan.of([(2, 48)] * 12)] * 2
    shared = [Plan(plans[0].sublayers) for _ in range(64)]
    fidelity = Fidelity(Split.FITNESS, (0, 4))
    assert len(Asked(shared, fidelity).packed()) < 2 * len(Asked(plans, fidelity).packed())


def _plain(outcome: Scores | Failure) -> object:
    if isinstance(outcome, Failure):
        return outcome.reason
    values = {name: (v.dtype.str, v.tobytes()) for name, v in outcome.per_window.items()}
    return dict(outcome.metrics), values, outcome.note
