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
        Scores({"params": 3, "kl": np.float64(1) / 3}, {"kl": np.ones((2, 3)) / 7}),
        Scores({"memory": 1.0}, {}),
    ]
    back = Scored.unpacked(Scored(sent, 3, 7, 0.5).packed())
    assert (back.runs, back.naive_runs, back.thread_seconds) == (3, 7, 0.5)
    assert [_plain(o) for o in back.outcomes] == [_plain(o) for o in sent]
    assert all(v.flags.aligned for o in back.outcomes if isinstance(o, Scores) for v in o.per_window.values())


def test_sublayers_that_plans_share_are_sent_once() -> None:
    plan = Plan.of([(2, 48)] * 12)
    lump = Asked([Plan(plan.sublayers) for _ in range(64)], Fidelity(Split.FITNESS, (0, 4))).packed()
    assert lump.count(b"kv_groups") == 12


def _plain(outcome: Scores | Failure) -> object:
    if isinstance(outcome, Failure):
        return outcome.reason
    values = {name: (v.dtype.str, v.tobytes()) for name, v in outcome.per_window.items()}
    return dict(outcome.metrics), values, outcome.note
