"""The last stage: the cheap before the dear, remembered in the ledger, failures apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from autoprune.errors import SettingError
from autoprune.evaluation import Context, Failure, FinalEvaluator, Scores
from autoprune.forward import BuiltModel, Runner
from autoprune.ledger import Ledger
from autoprune.objective import Split
from autoprune.progress import Progress
from autoprune.run.finalists import score_finalists, staged
from autoprune.run.finals import Finalist
from autoprune.run.parts import check_finals
from autoprune.run.tasks import FILE, differences, write_tasks
from autoprune.space import Plan

DENSE, SMALL, BAD = (Plan.of([(2, w)]) for w in (48, 8, 0))


@dataclass
class Own:
    """An evaluator with four items."""

    needs: Any = "supernet"
    tokens: int = 1
    metrics: tuple[str, ...] = ("own_acc",)
    split: Literal[Split.TEST] = Split.TEST
    asked: list[list[str]] = field(default_factory=list)

    def bind(self, context: Context) -> None:
        """Nothing to prepare."""

    def price(self) -> int:
        return self.tokens

    def evaluate(self, runner: Runner, plans: Sequence[Plan]) -> list[Scores | Failure]:
        self.asked.append([p.key for p in plans])
        assert isinstance(runner, BuiltModel) is (self.needs == "model")
        if BAD in plans:
            raise RuntimeError("no attention\nat all")
        items = [np.array([1.0, 1.0, 0.0, float(p is DENSE)]) for p in plans]
        return [Scores({"own_acc": float(i.mean())}, {"own_acc": i}) for i in items]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.create(tmp_path / "ledger.sqlite", {"model": "m"})


def parts(**evaluators: Own) -> Any:
    found = {"final_evaluators": evaluators, "supernet": object(), "dense_plan": lambda: DENSE}
    return SimpleNamespace(**found, build=lambda plan, dtype: object())


def score(given: Any, ledger: Ledger) -> dict[str, dict[str, float]]:
    return score_finalists(
        lambda ladders: given,
        ledger,
        [Finalist(p, {}) for p in (DENSE, SMALL, BAD, DENSE)],
        Progress(quiet=True),
    )


def test_stages() -> None:
    """Plan, supernet, model; the cheaper first."""
    every = {"d": Own("model", 1), "c": Own("supernet", 9), "b": Own("supernet", 2), "a": Own("plan", 50)}
    assert [name for name, _ in staged(every)] == ["a", "b", "c", "d"]
    assert all(isinstance(e, FinalEvaluator) for e in every.values())


def test_each_plan_is_asked_once_and_failures_stay_apart(ledger: Ledger) -> None:
    own = Own()
    first = score(parts(own=own), ledger)
    assert own.asked == [[DENSE.key, SMALL.key, BAD.key], [DENSE.key], [SMALL.key], [BAD.key]]
    assert first[DENSE.key]["own_acc"] == 0.75 and first[SMALL.key]["own_acc"] == 0.5 and first[BAD.key] == {}
    (failed,) = ledger.events("failed_final")
    assert failed["reason"] == "own: RuntimeError: no attention at all"
    own.asked.clear()
    assert score(parts(own=own), ledger) == first and own.asked == []


def test_models_are_built_one_by_one(ledger: Ledger) -> None:
    own = Own("model")
    score(parts(own=own), ledger)
    assert own.asked == [[DENSE.key], [SMALL.key], [BAD.key]]


def test_what_a_plan_loses_is_said(ledger: Ledger, tmp_path: Path) -> None:
    from autoprune.run.finalists import items_of
    from autoprune.run.finals import Entry

    found = score(parts(own=Own()), ledger)
    assert found[SMALL.key]["tasks_change"] == -0.25 and found[SMALL.key]["tasks_change_high"] > 0
    entries = [Entry(n, Finalist(p, {}), {}, found[p.key]) for n, p in (("dense", DENSE), ("front", SMALL))]
    told = write_tasks(entries, differences(items_of(ledger), DENSE.key), tmp_path)
    assert told == "On tasks 1 of 1 points of the front show no measurable loss; see tasks.md."
    assert (
        f"| front | `{SMALL.key}` | own | 0.500 ± 0.000 | no measurable loss (-25.0 points"
        in (tmp_path / FILE).read_text()
    )


def test_a_search_cannot_have_what_is_measured_on_test() -> None:
    given = parts(own=Own())
    check_finals(SimpleNamespace(objectives=["kl", "params"]), given.final_evaluators)  # type: ignore[arg-type]
    with pytest.raises(
        SettingError, match="'own_acc' is measured by evaluator=own on split test, which no search"
    ):
        check_finals(SimpleNamespace(objectives=["own_acc", "params"]), given.final_evaluators)  # type: ignore[arg-type]
