"""Rounds: each later one on ladders refit behind what was found, whole or cut, and what cannot have them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from autoprune.errors import SettingError
from autoprune.ledger import Ledger
from autoprune.run.finals import chosen, named
from autoprune.run.rounds import RoundsDriver
from autoprune.run.targets import PHASE, Shared, TargetsDriver, driver_of, read_targets, winner
from autoprune.searchers.auto import Auto
from autoprune.searchers.evopress import EvoPress
from autoprune.searchers.random import Random
from autoprune.searchers.tyr import Tyr
from autoprune.study import Budget, Phase, Study
from tests.core.runs import SPACE, TOKENS, FakeExecutor, Killed, create
from tests.tabular import KL, PARAMS

SHARES = (2.0, 1.0, 1.0)
MAKES: dict[str, Any] = {
    "auto": lambda p: Auto(p, candidates=6),
    "evopress": lambda p: EvoPress(p, 6, (2, 1), (1, 2)),
    "random": lambda p: Random(p, windows=2, batch=4),
    "tyr": lambda p: Tyr(p, 2, offspring=6, survivors=(2, 1), windows=(1, 2)),
}


def shared(settings: dict[str, Any], search: str = "evopress", tokens: int = 160 * TOKENS) -> Shared:
    targets, budget = read_targets(settings, SPACE), Budget(tokens, 4000, 40.0)
    given = Shared(SPACE, (KL, PARAMS), targets, budget, 8, TOKENS, 0, (), MAKES[search])
    return replace(given, rounds=SHARES, follow=3)


def see_through(driver: TargetsDriver, ledger: Ledger, executor: FakeExecutor) -> list[Phase]:
    """All phases, as a run does."""
    phases = []
    while (phase := driver.next(ledger)) is not None:
        phases.append(phase)
        Study(phase, ledger, executor).run()
        ledger.event(PHASE, number=phase.number, **named(phase.searcher))
    return phases


def test_without_rounds_there_is_a_phase_a_target() -> None:
    given = shared({"params": "0.5x"})
    assert type(driver_of(given)) is RoundsDriver
    assert type(driver_of(replace(given, rounds=(1.0,)))) is TargetsDriver


@pytest.mark.parametrize("search", ["evopress", "auto"])
def test_every_later_round_has_ladders_around_what_was_found(tmp_path: Path, search: str) -> None:
    ledger = create(tmp_path / "ledger.sqlite")
    phases = see_through(driver_of(shared({"params": "0.5x"}, search, 800 * TOKENS)), ledger, FakeExecutor())
    assert [p.supernet is None for p in phases] == [True, False, False]
    events = ledger.events(PHASE)
    for number in (1, 2):
        best, spec = chosen([events[number - 1]])[0], phases[number].supernet
        assert spec is not None and spec.reference == SPACE.decode(best)
        assert spec.follow == (number == 2), "from the third round on"
        problem = phases[number].searcher.problem  # type: ignore[attr-defined]
        assert problem.around == problem.seeds[0] == best
        assert best in {p.candidate for p in ledger.proposals(number, 0)}, "it may stay what it is"
    assert phases[0].searcher.problem.around is None  # type: ignore[attr-defined]


def test_shares_of_the_budget(tmp_path: Path) -> None:
    driver = driver_of(shared({"params": ["0.7x", "0.5x"]}, tokens=161 * TOKENS))
    budgets = [driver.phase(number).budget for number in range(6)]
    assert sum(b.tokens or 0 for b in budgets) == 161 * TOKENS
    assert [b.evaluations for b in budgets] == [1000, 500, 500, 1000, 500, 500]
    assert [b.seconds for b in budgets] == pytest.approx([10, 5, 5, 10, 5, 5])


def test_several_targets_have_rounds_of_their_own(tmp_path: Path) -> None:
    ledger, driver = create(tmp_path / "ledger.sqlite"), driver_of(shared({"params": ["0.7x", "0.5x"]}))
    phases = see_through(driver, ledger, FakeExecutor())
    assert [p.constraints[0].text for p in phases] == ["0.7x"] * 3 + ["0.5x"] * 3
    assert [p.supernet is None for p in phases] == [True, False, False] * 2
    assert driver.rivals(ledger) == [[(2,), (1,), (0,)], [(5,), (4,), (3,)]]
    for phase in (p for p in phases if p.supernet is not None):
        (around,) = {phase.searcher.problem.around}  # type: ignore[attr-defined]
        assert not phase.constraints[0].violation(SPACE.cost(around))


def test_the_next_target_starts_from_a_plan_that_fits_it(tmp_path: Path) -> None:
    ledger, driver = create(tmp_path / "ledger.sqlite"), driver_of(shared({"params": ["0.7x", "0.5x"]}))
    phases = see_through(driver, ledger, FakeExecutor())
    found = driver._found(2, ledger)  # type: ignore[attr-defined]
    first = phases[3].searcher.problem.seeds[0]  # type: ignore[attr-defined]
    assert found is not None and phases[3].constraints[0].violation(SPACE.cost(found)) > 0
    assert not phases[3].constraints[0].violation(SPACE.cost(first))


def test_a_champion_that_misses_its_target_is_passed_over(tmp_path: Path) -> None:
    ledger, driver = create(tmp_path / "ledger.sqlite"), driver_of(shared({"params": "0.5x"}))
    phase = driver.next(ledger)
    assert phase is not None
    Study(phase, ledger, FakeExecutor()).run()
    ledger.event(PHASE, number=0, finalists=[SPACE.dense.to_json()])
    assert chosen(ledger.events(PHASE)) == [SPACE.dense]
    second = driver.next(ledger)
    won = winner(ledger.to_frame(), 0, shared({"params": "0.5x"}).objectives)
    assert won is not None and second is not None and second.supernet is not None
    assert second.supernet.reference == SPACE.decode(won)


@pytest.mark.parametrize(
    ("search", "share"), [("evopress", 0.1), ("evopress", 0.7), ("auto", 0.4), ("auto", 0.8)]
)
def test_killed_anywhere_the_ledger_and_the_ladders_are_the_same(
    tmp_path: Path, share: float, search: str
) -> None:
    given = shared({"params": "0.5x"}, search, 480 * TOKENS)
    whole, cut = create(tmp_path / "whole.sqlite"), create(tmp_path / "cut.sqlite")
    executor = FakeExecutor()
    undisturbed = see_through(driver_of(given), whole, executor)
    with pytest.raises(Killed):
        see_through(driver_of(given), cut, FakeExecutor(die_after=int(share * len(executor.seen))))
    resumed = see_through(driver_of(given), cut, FakeExecutor())
    assert cut.ordered() == whole.ordered()
    assert [p.supernet for p in resumed] == [p.supernet for p in undisturbed][-len(resumed) :]


def test_a_searcher_that_names_nothing_hands_on_its_best_result(tmp_path: Path) -> None:
    ledger, given = create(tmp_path / "ledger.sqlite"), shared({"params": "0.5x"})
    driver = driver_of(given)
    first = driver.next(ledger)
    assert first is not None
    Study(first, ledger, FakeExecutor()).run()
    ledger.event(PHASE, number=0)
    second, won = driver.next(ledger), winner(ledger.to_frame(), 0, given.objectives)
    assert second is not None and second.supernet is not None and won is not None
    assert second.supernet.reference == SPACE.decode(won)


def test_where_all_failed_ladders_stay_what_they_are(tmp_path: Path) -> None:
    ledger = create(tmp_path / "ledger.sqlite")
    phases = see_through(driver_of(shared({"params": "0.5x"})), ledger, FakeExecutor(fails=lambda p: True))
    assert len(phases) == 3


def test_what_has_no_plan_to_rebuild_around_is_refused() -> None:
    with pytest.raises(SettingError, match="around one plan; set for example constraints"):
        driver_of(shared({}, "auto"))
    with pytest.raises(SettingError, match="this search looks for a front"):
        driver_of(shared({"params": "0.5x"}, "random"))
    with pytest.raises(SettingError, match="rebuilds ladders by itself; allowed"):
        driver_of(shared({"params": "0.5x"}, "tyr"))
